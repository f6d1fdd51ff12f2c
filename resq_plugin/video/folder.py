"""Folders: which files are frames or videos, in which order, and what a frame's picture is."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from resq_plugin.errors import VideoError
from resq_plugin.extras import need
from resq_plugin.video.display import Pixels

__all__ = [
    "ARRAY_SUFFIXES",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "ImageFolder",
    "frame_files",
    "has_suffix",
    "is_hidden",
    "jumps",
    "natural_key",
    "read_image",
    "video_sources",
]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
ARRAY_SUFFIXES = (".npy", ".npz")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_DESKTOP = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db")


def natural_key(text: str) -> list[tuple[int, str]]:
    """Key for the order people expect.

    >>> sorted(["f10.png", "f9.png"], key=natural_key)
    ['f9.png', 'f10.png']
    """
    parts = re.split(r"([0-9]+)", text)
    return [(int(part), part) if index % 2 else (-1, part) for index, part in enumerate(parts)]


def has_suffix(path: str | os.PathLike[str], suffixes: Iterable[str]) -> bool:
    """Whether a file's name ends in one of the suffixes, in capitals or not.

    >>> has_suffix("IMG_0001.JPG", IMAGE_SUFFIXES)
    True
    """
    return os.path.basename(path).lower().endswith(tuple(suffix.lower() for suffix in suffixes))


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file or folder below ``root`` belongs to the desktop: ``._0001.png``, ``__MACOSX/``, ``Thumbs.db``."""
    return any(part.startswith(".") or part in _DESKTOP for part in path.relative_to(root).parts)


def frame_files(
    folder: str | os.PathLike[str], suffixes: Iterable[str] = IMAGE_SUFFIXES, *, recursive: bool = False
) -> list[Path]:
    """List the files of a folder with these suffixes, in capitals or not, in natural order (9 before 10).

    Hidden files and those of desktops are left out.

    Args:
        folder: it need not exist.
        suffixes: of names, such as ``.png`` or ``_gtFine_labelTrainIds.png``.
        recursive: also in the folders below.
    """
    root, suffixes = Path(folder), tuple(suffixes)
    if not root.is_dir():
        return []
    found = _below(root) if recursive else root.iterdir()
    files = [path for path in found if has_suffix(path, suffixes) and not is_hidden(path, root) and path.is_file()]
    return sorted(files, key=lambda path: natural_key(path.relative_to(root).as_posix()))


def _below(root: Path) -> Iterator[Path]:
    """All files below a folder, also through links to folders, each folder once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would go on for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(Path(folder, name), root)]
        yield from (Path(folder, name) for name in files)


def video_sources(root: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES + VIDEO_SUFFIXES) -> list[Path]:
    """Folders of frames and video files in a folder and those below, in natural order; a file is itself."""
    if root.is_file():
        return [root]
    files = frame_files(root, suffixes, recursive=True)
    sources = {path if has_suffix(path, VIDEO_SUFFIXES) else path.parent for path in files}
    return sorted(sources, key=lambda path: natural_key(path.as_posix()))


def jumps(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Neighbours in a list of frames whose numbers, the last in their names, are farther apart than most, or go back.

    >>> names = ("f1.png", "f2.png", "f3.png", "f7.png", "f8.png")
    >>> jumps([Path(name) for name in names])
    [(PosixPath('f3.png'), PosixPath('f7.png'))]
    """
    numbers = [re.findall("[0-9]+", path.stem)[-1:] for path in files]
    if not all(numbers) or len(files) < 3:
        return []
    steps = [int(after[0]) - int(before[0]) for before, after in itertools.pairwise(numbers)]
    usual = Counter(steps).most_common(1)[0][0]
    pairs = itertools.pairwise(files)
    return [pair for pair, step in zip(pairs, steps, strict=True) if step > usual or step < 0]


class ImageFolder(Sequence[Pixels]):
    """The frames of a folder in natural order as pictures (H, W, 3), RGB, uint8.

    Frames are taken for consecutive; a warning names numbers that are missing.

    Raises:
        VideoError: there is no such folder, or no frame in it; the message tells what is there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.files = frame_files(self.folder)
        if not self.files:
            raise VideoError(_nothing(self.folder))
        if found := jumps(self.files):
            before, after = found[0]
            logger.warning(
                "%s: frames are missing between %s and %s%s; what stands there counts as one step in time. Put frames "
                "of another stretch or video into a folder of their own.",
                self.folder,
                before.name,
                after.name,
                f", and at {len(found) - 1} other places" if len(found) > 1 else "",
            )

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.files)

    def __getitem__(self, index: int) -> Pixels:  # type: ignore[override]
        """Read one frame."""
        return read_image(self.files[index])

    def __iter__(self) -> Iterator[Pixels]:
        """Yield all frames in order."""
        return map(read_image, self.files)


def read_image(path: str | os.PathLike[str]) -> Pixels:
    """Read an image as (H, W, 3), RGB, uint8, turned as its EXIF data asks for.

    Of 16 bits the upper 8 are taken, a palette is applied, grey is three times itself and transparency is dropped, as
    ``cv2.imread`` does.

    Raises:
        VideoError: it cannot be read; the message names it.
    """
    image_module, operations = need("PIL.Image", "video"), need("PIL.ImageOps", "video")
    try:
        with image_module.open(path) as file:
            image = operations.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
                grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if image.mode == "F":
                msg = "it holds floating-point numbers"
                raise ValueError(msg)
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        msg = f"the frame {path} cannot be read ({error}); write it again, e.g. as an 8-bit .png."
        raise VideoError(msg) from error


def _nothing(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist; give a video file such as an .mp4, or a folder of frames."
    films = [path for path in video_sources(folder) if path != folder]
    kinds = ", ".join(suffix for suffix in IMAGE_SUFFIXES)
    if films:
        return f"{folder} holds no frame ({kinds}) itself but {len(films)} video(s) below; give one, e.g. {films[0]}."
    return f"{folder} holds no frame ({kinds}); give a folder of frames, or a video file such as an .mp4."
