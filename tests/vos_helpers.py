"""A tiny STM, moving squares, and the shared data if it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resq_vos.davis import write_labels
from resq_vos.stm import STM, STMConfig
from resq_vos.trunk import TrunkConfig
from torch import Tensor

TINY = STMConfig(TrunkConfig(stem=6, width=3, blocks=(1, 1, 1)), key=8, value=6, decoder=5)
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def tiny_stm(seed: int = 0, config: STMConfig = TINY) -> STM:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return STM(config).eval()


def moving_squares(frames: int = 8, size: tuple[int, int] = (32, 44), objects: int = 2) -> tuple[Tensor, Tensor]:
    """Frames (T, 3, H, W) and labels (T, H, W) of squares that move by a pixel."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    scene = 0.3 * torch.rand(3, height, width, generator=generator)
    colours = torch.rand(objects, 3, generator=generator)
    pictures, labels = [], []
    for t in range(frames):
        picture, label = scene.clone(), torch.zeros(height, width, dtype=torch.int64)
        for index in range(objects):
            top, left = 3 + 12 * index, 4 + t + 9 * index
            label[top : top + 10, left : left + 10] = index + 1
            picture[:, top : top + 10, left : left + 10] = colours[index].view(3, 1, 1)
        pictures.append(picture)
        labels.append(label)
    return torch.stack(pictures), torch.stack(labels)


def shared(name: str) -> Path:
    """A path in the shared data of the project, or skip."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the development data {name}, which is not part of the project")
    return path


def write_davis(root: Path, names: tuple[str, ...] = ("cat", "dog"), *, single: bool = True) -> Path:
    """A small data set in the layout of DAVIS, frames at half the masks' resolution."""
    frames, labels = moving_squares(5)
    for name in names:
        pictures, masks = root / "JPEGImages/240p" / name, root / "Annotations/480p" / name
        pictures.mkdir(parents=True)
        masks.mkdir(parents=True)
        for t in range(5):
            pixels = (frames[t].permute(1, 2, 0) * 255).byte().numpy()
            Image.fromarray(pixels).save(pictures / f"{t:05d}.jpg")
            whole = labels[t].numpy().repeat(2, 0).repeat(2, 1).astype(np.uint8)
            if single:
                Image.fromarray((whole > 0).astype(np.uint8) * 255).save(masks / f"{t:05d}.png")
            else:
                write_labels(masks / f"{t:05d}.png", whole)
    return root
