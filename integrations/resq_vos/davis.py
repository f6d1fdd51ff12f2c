"""The layout of DAVIS on disk: frames, annotations, sequences, palette."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resq_plugin.errors import ConfigError, FrameError
from resq_plugin.video import read_image

__all__ = ["PALETTE", "DavisSequence", "find_sequences", "read_frame", "read_labels", "write_labels"]

FOREGROUND = 255
"""What DAVIS-2016 writes for its one object; DAVIS-2017 numbers objects and paints them by a palette."""


def _palette() -> list[int]:
    """The colours of PASCAL VOC and DAVIS: the bits of the label, spread over red, green and blue from the top."""
    colours = []
    for label in range(256):
        rgb, rest = [0, 0, 0], label
        for bit in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colours += rgb
    return colours


PALETTE = _palette()
"""Red, green and blue of labels 0, 1, 2, ... in a row."""


def read_frame(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture as a frame (1, 3, H, W), RGB 0..1.

    Raises:
        VideoError: it is no picture that can be read.
    """
    return torch.from_numpy(read_image(path)).permute(2, 0, 1).float().div_(255).unsqueeze(0).contiguous()


def read_labels(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read labels (H, W): palette or grey values are object numbers, 0 is the background.

    A picture of only 0 and 255 is one object, as in DAVIS-2016; with a palette, 255 is what is not annotated.

    Raises:
        FrameError: it is no such picture.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            image = opened.copy()
    except (OSError, SyntaxError) as error:
        msg = f"cannot read the mask {path}: {error}"
        raise FrameError(msg) from error
    if image.mode == "P":
        labels = np.asarray(image).astype(np.uint8)
        return np.where(labels == FOREGROUND, 0, labels).astype(np.uint8)
    if image.mode in ("RGB", "RGBA"):
        channels = np.asarray(image.convert("RGB"))
        if (channels != channels[..., :1]).any():
            msg = (
                f"the mask {path} is a colour picture ({image.mode}); write object numbers as a palette or grey PNG, "
                "as DAVIS does: 0 background, 1, 2, ... objects (or 255 for a single one)."
            )
            raise FrameError(msg)
        labels = channels[..., 0]
    else:
        labels = np.asarray(image.convert("L"))
    found = np.unique(labels)
    if found.size and found.max() == FOREGROUND and found.size <= 2:
        labels = labels == FOREGROUND
    elif found.size > 2 and found.max() == FOREGROUND and found.size > 32:
        msg = (
            f"the mask {path} has {found.size} grey values, so it is no mask of object numbers (a photo, or softened "
            "edges?); write 0 for the background and 1, 2, ... for objects."
        )
        raise FrameError(msg)
    return labels.astype(np.uint8)


def write_labels(path: str | os.PathLike[str], labels: NDArray[np.integer] | Tensor) -> None:
    """Write labels (H, W) as a PNG with the palette of DAVIS."""
    image = Image.fromarray(np.asarray(labels).astype(np.uint8), mode="P")
    image.putpalette(PALETTE)
    image.save(path)


@dataclass(frozen=True)
class DavisSequence:
    """One video of DAVIS.

    Attributes:
        name: of the sequence.
        frames: pictures in order.
        masks: annotations by the stem of the frame's file name.
        single: DAVIS-2016: all objects of an annotation are one.
    """

    name: str
    frames: tuple[Path, ...]
    masks: dict[str, Path]
    single: bool = True

    def labels(self, index: int) -> NDArray[np.uint8]:
        """Labels (H, W) of the frame of that number."""
        path = self.masks.get(self.frames[index].stem)
        if path is None:
            msg = f"sequence {self.name} has no annotation of frame {self.frames[index].name}."
            raise ConfigError(msg)
        labels = read_labels(path)
        return (labels > 0).astype(np.uint8) if self.single else labels

    @cached_property
    def objects(self) -> tuple[int, ...]:
        """Numbers of the objects in the first frame."""
        return tuple(int(label) for label in np.unique(self.labels(0)) if label)

    def __len__(self) -> int:
        return len(self.frames)


def _resolution(folder: Path, wanted: str | None) -> Path:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if wanted is None and len(names) == 1:
        wanted = names[0]
    wanted = wanted or "480p"
    if wanted not in names:
        msg = f"{folder} has no folder {wanted!r} but {', '.join(names) or 'none'}; name one of them."
        raise ConfigError(msg)
    return folder / wanted


def find_sequences(
    root: str | os.PathLike[str],
    names: Sequence[str] = (),
    *,
    year: int | None = None,
    images: str | None = None,
    annotations: str | None = None,
    split: str = "val",
) -> list[DavisSequence]:
    """Find the sequences of DAVIS-2016 or DAVIS-2017.

    Args:
        root: folder with ``JPEGImages/<resolution>/<sequence>/*.jpg`` and the same of ``*.png`` in ``Annotations``.
        names: which; empty takes those that ``ImageSets/<year>/<split>.txt`` lists, or all if there is no such file.
        year: 2016 makes one object of all, 2017 keeps their numbers; None asks the lists in ``ImageSets``, else 2016.
        images: resolution of the frames, a folder such as ``480p``; may be left out where there is one.
        annotations: resolution of the masks; likewise.
        split: of the list.

    Raises:
        ConfigError: a folder, a sequence or its first annotation is missing.
    """
    root = Path(root)
    if year not in (None, 2016, 2017):
        msg = f"year={year!r} of DAVIS is not known; write 2016 (one object) or 2017 (numbered objects)."
        raise ConfigError(msg)
    for part in ("JPEGImages", "Annotations"):
        if not (root / part).is_dir():
            msg = f"{root} is no folder of DAVIS: it has no {part}/; pass the one with JPEGImages/ and Annotations/."
            raise ConfigError(msg)
    frames, masks = _resolution(root / "JPEGImages", images), _resolution(root / "Annotations", annotations)
    lists = {item: root / "ImageSets" / str(item) / f"{split}.txt" for item in (2016, 2017)}
    if year is None:
        year = next((item for item in (2017, 2016) if lists[item].is_file()), 2016)
    there = sorted(path.name for path in frames.iterdir() if path.is_dir())
    if not names:
        names = lists[year].read_text().split() if lists[year].is_file() else there
    missing = [name for name in names if name not in there]
    if missing:
        msg = f"{frames} has no sequence {missing[0]!r}; there are {', '.join(there) or 'none'}."
        raise ConfigError(msg)
    sequences = []
    for name in names:
        pictures = tuple(sorted(path for path in (frames / name).iterdir() if path.suffix.lower() in (".jpg", ".png")))
        annotated = {path.stem: path for path in (masks / name).glob("*.png")}
        if not pictures or pictures[0].stem not in annotated:
            msg = f"sequence {name} of {root} has no frame or no annotation of its first frame."
            raise ConfigError(msg)
        sequences.append(DavisSequence(name, pictures, annotated, single=year == 2016))
    return sequences
