"""Intervals from still images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resq_plugin.errors import ConfigError
from resq_plugin.training import Camera, StillClips, film

QUIET = Camera(size=(20, 24), noise=0, exposure=0, flip=0, ignore=11)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(seed: int = 0, shape: tuple[int, int] = (40, 60)) -> tuple[Tensor, Tensor]:
    """A smooth image (3, H, W) and its labels (H, W): the sign pattern of its channels."""
    coarse = torch.randn(1, 3, 5, 6, generator=generator(seed))
    image = F.interpolate(coarse, shape, mode="bicubic")[0]
    return image, labels_of(image)


def labels_of(image: Tensor) -> Tensor:
    return ((image > 0).long() * torch.tensor([1, 2, 4]).view(3, 1, 1)).sum(-3)


def test_a_camera_at_rest_shows_the_photograph() -> None:
    image, label = photograph()
    rest = Camera(size=(40, 60), zoom=(1, 1), shift=0, zooming=0, rotation=0, turning=0, noise=0, exposure=0, flip=0)
    frames, labels = film(image, label, 3, rest, generator())
    for t in range(3):
        assert torch.allclose(frames[t], image, atol=1e-5)
        assert torch.equal(labels[t], label)


def test_a_mirrored_clip_is_the_mirror() -> None:
    image, label = photograph()
    rest = Camera(size=(40, 60), zoom=(1, 1), shift=0, zooming=0, rotation=0, turning=0, noise=0, exposure=0, flip=1)
    frames, labels = film(image, label, 1, rest, generator())
    assert torch.allclose(frames[0], image.flip(-1), atol=1e-5)
    assert torch.equal(labels[0], label.flip(-1))


@pytest.mark.parametrize("seed", range(5))
def test_image_and_label_move_alike(seed: int) -> None:
    """Where the frame is away from the edge between two classes, its label is that of its own pixels."""
    image, label = photograph(seed)
    frames, labels = film(image, label, 4, QUIET, generator(seed))
    inside = (labels != QUIET.ignore) & (frames.abs().amin(1) > 0.3)
    assert int(inside.sum()) > 100
    wrong = (torch.stack([labels_of(frame) for frame in frames]) != labels) & inside
    assert int(wrong.sum()) == 0


def test_what_lies_outside_is_ignored() -> None:
    image, label = photograph()
    far = Camera(size=(40, 60), zoom=(0.5, 0.5), shift=0, rotation=0, noise=0, exposure=0, flip=0, ignore=11)
    _, labels = film(image, label, 1, far, generator())
    assert bool((labels[0, :9] == 11).all())
    assert bool((labels[0, 11:29, 16:44] != 11).all())
    ignored = torch.full_like(label, 255)
    _, kept = film(image, ignored, 1, QUIET, generator())
    assert set(kept.unique().tolist()) <= {255, 11}


def test_motion_is_smooth_and_within_its_limits() -> None:
    """A linear ramp shows where the camera looks: shift per frame is bounded, its change is smaller still."""
    ramp = torch.arange(400.0).expand(1, 300, 400)
    camera = Camera(
        size=(32, 32),
        zoom=(1, 1),
        shift=4,
        zooming=0,
        rotation=0,
        turning=0,
        noise=0,
        exposure=0,
        flip=0,
        smoothness=0.9,
    )
    for seed in range(5):
        frames, _ = film(ramp, None, 8, camera, generator(seed))
        x = frames[:, 0, 16, 16]
        steps = x.diff()
        assert float(steps.abs().max()) <= 4.01
        assert float(steps.diff().abs().max()) <= 2 * 4 * 0.1 + 0.01
    frames, _ = film(ramp, None, 8, camera, generator(1))
    assert float(frames[:, 0, 16, 16].diff().abs().max()) > 0.1


def test_noise_and_exposure() -> None:
    flat = torch.full((1, 50, 50), 2.0)
    camera = Camera(size=(40, 40), zoom=(1, 1), noise=0.1, exposure=0.05, flip=0)
    frames, _ = film(flat, None, 3, camera, generator())
    assert float(frames[0].std()) == pytest.approx(0.1, rel=0.1)
    assert float((frames[0] - frames[1]).std()) == pytest.approx(0.1 * 2**0.5, rel=0.1)
    assert float(frames[1].mean()) != pytest.approx(float(frames[0].mean()), abs=0.01)


def test_clips_depend_on_seed_pass_and_image_alone() -> None:
    images, labels = zip(*[photograph(seed) for seed in range(3)], strict=True)
    clips = StillClips(images, labels, camera=QUIET, seed=1)
    first = clips[2][0]
    clips[0]
    assert torch.equal(clips[2][0], first)
    clips.set_epoch(1)
    assert not torch.equal(clips[2][0], first)
    clips.set_epoch(0)
    assert torch.equal(clips[2][0], first)
    assert not torch.equal(StillClips(images, labels, camera=QUIET, seed=2)[2][0], first)
    state = torch.get_rng_state()
    clips[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 images and 1 labels"):
        StillClips([photograph()[0]] * 2, [photograph()[1]])
    with pytest.raises(ConfigError, match=r"zoom=.* an ascending pair"):
        Camera(zoom=(2, 1))


def test_one_frame_alone_is_that_of_the_clip() -> None:
    image, label = photograph()
    camera = Camera(size=(20, 24), ignore=11)
    frames, labels = film(image, label, 4, camera, generator(3))
    for position in range(4):
        frame, own = film(image, label, position + 1, camera, generator(3), only=position)
        assert torch.equal(frame[0], frames[position])
        assert torch.equal(own[0], labels[position])
