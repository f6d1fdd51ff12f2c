"""Whether a video file is all there: its container tells how long it is."""

from __future__ import annotations

import os
from typing import BinaryIO

__all__ = ["missing_bytes"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """Return how many bytes at the end of a file its container announces and the file lacks.

    MP4 and MOV (size of the last box), Matroska and WebM (size of the segment) and AVI (size of RIFF) tell; 0 for all
    others, and where a recorder did not know the size.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(16)
        if start[4:8] in _BOXES:
            end = _end_of_boxes(file, size)
        elif start[:4] == _EBML:
            end = _end_of_segment(file)
        elif start[:4] == b"RIFF" and start[8:12] == b"AVI ":
            end = 8 + int.from_bytes(start[4:8], "little")
        else:
            end = 0
    return max(end - size, 0)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        if length == 1:  # a size of 64 bits follows the name
            length = int.from_bytes(head[8:16])
        if length < 8:  # 0: to the end of the file, however long it is
            return 0
        position += length
    return position


def _end_of_segment(file: BinaryIO) -> int:
    file.seek(len(_EBML))
    header = _size(file)
    file.seek(header or 0, os.SEEK_CUR)
    if header is None or file.read(len(_SEGMENT)) != _SEGMENT:
        return 0
    length = _size(file)
    return 0 if length is None else file.tell() + length


def _size(file: BinaryIO) -> int | None:
    """Read an EBML size: as many leading zero bits as bytes follow; all ones when it is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more))
    return None if value == (1 << (7 * (more + 1))) - 1 else value
