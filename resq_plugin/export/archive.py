"""Arrays of an ``.npz`` file, each checked by its header before memory is taken for it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Archive", "Expected"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """What an array has to be.

    Attributes:
        shape: its shape; None stands for one dimension of at most ``largest`` elements.
        dtypes: numpy names of the types it may have; empty for any of numbers and truth values.
        largest: see ``shape``.
    """

    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...] = ()
    largest: int = 2**26

    def refuses(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether an array of that shape and type is another."""
        fits = dtype.name in self.dtypes if self.dtypes else dtype.kind in "biuf"
        if self.shape is None:
            return not fits or len(shape) != 1 or shape[0] > self.largest
        return not fits or shape != self.shape


class Archive:
    """An ``.npz`` file that is open for reading.

    What is damaged in it raises whatever the reader stumbles over; what is not as expected raises ValueError.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        entries = [entry.filename.removesuffix(".npy") for entry in self._zip.infolist()]
        self.names = frozenset(entries)
        if len(self.names) != len(entries):
            msg = "an array occurs twice"
            raise ValueError(msg)

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def read(self, name: str, expected: Expected) -> Array:
        """Read one array."""
        with self._zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = header[version](file)
        if expected.refuses(shape, dtype):
            msg = f"{name!r:.80} is {shape!r:.80} {str(dtype)!r:.80}"
            raise ValueError(msg)
        with self._zip.open(f"{name}.npy") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                msg = f"{name!r:.80} is longer than it says"
                raise ValueError(msg)
        return array

    def read_all(self, expected: Mapping[str, Expected]) -> dict[str, Array]:
        """Read all arrays, which are exactly these."""
        for name in sorted(expected.keys() ^ self.names):
            msg = f"{name!r:.80} is {'missing' if name in expected else 'unknown'}"
            raise ValueError(msg)
        return {name: self.read(name, entry) for name, entry in expected.items()}
