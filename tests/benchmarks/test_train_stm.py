"""The recipe of the small STM: its scenes, and a step of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resq_vos.stm import SMALL, load_stm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three stills of noise with three regions each, in the layout of BSDS."""
    generator = np.random.default_rng(0)
    for folder in ("images", "regions"):
        (tmp_path / "bsds" / folder).mkdir(parents=True)
    for number in range(3):
        regions = np.ones((240, 300), dtype=np.uint8)
        regions[40:200, 30:130], regions[60:180, 160:270] = 2, 3
        colours = generator.integers(0, 255, (4, 3))
        pixels = (colours[regions] + generator.integers(-20, 20, (240, 300, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "bsds" / "images" / f"{number}.jpg")
        Image.fromarray(regions).save(tmp_path / "bsds" / "regions" / f"{number}.png")
    return tmp_path


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> object:
    pytest.importorskip("mmseg")  # what benchmarks share imports it
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import train_stm

    return train_stm


def test_objects_move_with_their_masks(recipe: object, data: Path) -> None:
    stills = recipe.Stills(data, seed=1)
    frames, masks = stills.triple(192)
    assert frames.shape == (3, 3, 192, 192)
    assert masks.shape == (3, 192, 192)
    assert 0 <= float(frames.min()) <= float(frames.max()) <= 1
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    low, high = recipe.MARGIN
    assert low < float(masks[0].mean()) < high
    assert not torch.equal(masks[0], masks[1])


def test_a_motion_of_nothing_changes_nothing(recipe: object) -> None:
    x = torch.rand(3, 32, 48)
    assert torch.allclose(recipe.warp(x, torch.eye(3)), x, atol=1e-5)
    moved = torch.eye(3)
    moved[0, 2] = 2 * 4 / 48  # four pixels to the right, of a width of 2
    assert torch.allclose(recipe.warp(x, moved)[:, :, 4:], x[:, :, :-4], atol=1e-4)


def test_loss_by_hand(recipe: object) -> None:
    logits, masks = torch.zeros(1, 1, 4), torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    # p = 1/2: cross-entropy ln 2, Dice 1 - (2 · 1 + 1) / (2 + 2 + 1).
    assert float(recipe.loss_of(logits, masks)) == pytest.approx(np.log(2) + 0.5 * (1 - 3 / 5))


@pytest.mark.slow
def test_the_script_writes_weights_that_load(
    recipe: object, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stm.pth"
    argv = ["train_stm.py", "--data", str(data), "--out", str(out), "--steps", "1", "--batch", "1", "--pictures", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    recipe.main()
    assert load_stm(out).config == SMALL
