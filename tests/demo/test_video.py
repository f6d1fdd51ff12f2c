"""The demo video: deterministic, exactly labelled, and honest about what it does not accept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from resq_plugin.demo import CLASSES, PALETTE, SceneConfig, generate_clip, to_rgb

SMALL = SceneConfig(height=64, width=96, shapes=6, seed=3)


def test_shapes_and_dtypes() -> None:
    frames, labels = generate_clip(SMALL, 5)
    assert (frames.shape, frames.dtype) == ((5, 3, 64, 96), torch.float32)
    assert (labels.shape, labels.dtype) == ((5, 64, 96), torch.int64)
    assert frames.is_contiguous()
    assert labels.is_contiguous()
    assert frames.isfinite().all()
    rgb = to_rgb(frames)
    assert (rgb.shape, rgb.dtype) == (frames.shape, torch.uint8)
    assert int(rgb.max()) > 150
    assert int(rgb.min()) < 60


def test_same_seed_same_clip_and_global_rng_untouched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate_clip(SMALL, 4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    second = generate_clip(SMALL, 4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_longer_clip_starts_with_the_shorter_one() -> None:
    config = replace(SMALL, camera="pan")
    for short, long in zip(generate_clip(config, 3), generate_clip(config, 20), strict=True):
        assert torch.equal(short, long[:3])


def test_different_seed_differs() -> None:
    frames, labels = generate_clip(SMALL, 2)
    other_frames, other_labels = generate_clip(replace(SMALL, seed=4), 2)
    assert not torch.equal(labels, other_labels)
    assert not torch.equal(frames, other_frames)


@pytest.mark.parametrize("camera", ["still", "pan"])
def test_labels_are_exactly_the_painted_pixels(camera: Any) -> None:
    config = replace(SMALL, noise=0.0, camera=camera)
    frames, labels = generate_clip(config, 4)
    empty, nothing = generate_clip(replace(config, shapes=0), 4)
    assert not nothing.any()
    painted = (frames != empty).any(dim=1)
    assert torch.equal(painted, labels > 0)


def test_each_shape_has_its_own_label_where_it_is_in_front() -> None:
    config = replace(SMALL, noise=0.0)
    for shapes in range(1, 7):
        frames, labels = generate_clip(replace(config, shapes=shapes), 3)
        before_frames, before_labels = generate_clip(replace(config, shapes=shapes - 1), 3)
        painted = (frames != before_frames).any(dim=1)
        assert torch.equal(labels[~painted], before_labels[~painted])
        assert len(labels[painted].unique()) <= 1


def test_every_class_occurs() -> None:
    seen = torch.cat([generate_clip(SceneConfig(seed=seed), 1)[1].flatten() for seed in range(8)])
    assert seen.unique().tolist() == list(range(len(CLASSES)))
    assert len(PALETTE) == len(CLASSES)


def test_noise_changes_pixels_only() -> None:
    frames, labels = generate_clip(replace(SMALL, noise=0.0), 2)
    noisy, noisy_labels = generate_clip(replace(SMALL, noise=0.05), 2)
    assert torch.equal(labels, noisy_labels)
    difference = (noisy - frames).std() / 4  # 4: the frames are normalised by a standard deviation of 0.25
    assert 0.03 < float(difference) < 0.06


def test_pan_shifts_labels_and_pixels() -> None:
    config = replace(SMALL, camera="pan", pan_speed=2.0, speed=0.0, noise=0.0)
    frames, labels = generate_clip(config, 6)
    for t in range(1, 6):
        assert torch.equal(labels[t, :, : -2 * t], labels[0, :, 2 * t :])
        assert float((frames[t, ..., : -2 * t] - frames[0, ..., 2 * t :]).abs().max()) < 1e-4


def test_still_scene_without_motion_stands_still() -> None:
    frames, labels = generate_clip(replace(SMALL, speed=0.0, noise=0.0), 3)
    assert torch.equal(frames[0], frames[2])
    assert torch.equal(labels[0], labels[2])


def test_motion_is_small_and_never_stops() -> None:
    _, labels = generate_clip(SMALL, 30)
    changed = (labels[1:] != labels[:-1]).float().mean(dim=(1, 2))
    assert float(changed.min()) > 0
    assert float(changed.max()) < 0.12


@pytest.mark.parametrize(
    ("change", "found", "allowed"),
    [
        ({"camera": "zoom"}, "camera='zoom'", "still, pan"),
        ({"height": 100}, "height=100", "multiple of 8"),
        ({"width": 16}, "width=16", "at least 32"),
        ({"shapes": -1}, "shapes=-1", ">= 0"),
        ({"noise": float("nan")}, "noise=nan", ">= 0"),
        ({"speed": -0.5}, "speed=-0.5", ">= 0"),
        ({"speed": float("inf")}, "speed=inf", "finite"),
        ({"seed": -7}, "seed=-7", "integer >= 0"),
        ({"seed": 1.5}, "seed=1.5", "integer >= 0"),
        ({"pan_speed": float("inf")}, "pan_speed=inf", "finite"),
    ],
)
def test_invalid_config_says_what_was_found_and_what_is_allowed(
    change: dict[str, Any], found: str, allowed: str
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        SceneConfig(**change)
    assert found in str(raised.value)
    assert allowed in str(raised.value)


@pytest.mark.parametrize("frames", [0, -3])
def test_invalid_number_of_frames(frames: int) -> None:
    with pytest.raises(ValueError, match=f"frames={frames}: expected an integer >= 1"):
        generate_clip(SMALL, frames)
