"""What a manifest says of tensors, graphs, layers and files. Each says no to values that cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRAME", "CacheSpec", "FileSpec", "GraphSpec", "HtpSpec", "LayerSpec", "TensorSpec"]

FRAME = "frame"
"""Name of the input of every graph that is no memory."""
INTEGERS = ("int8", "uint8", "int16", "uint16")
DTYPES = ("float32", "float16", "float64", "bool", "int32", "uint32", "int64", "uint64", *INTEGERS)
LONGEST = 2**31 - 1
CHECKSUM = re.compile(r"[0-9a-f]{64}")


def _refuse(condition: object, text: str) -> None:
    if condition:
        raise ValueError(text)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: its name in the graph.
        shape: static shape.
        dtype: numpy name, e.g. ``float32`` or ``int8``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _refuse(not self.name, "a tensor has no name")
        _refuse(self.dtype not in DTYPES, f"{self.name!r:.80} has the type {self.dtype!r:.80}")
        sides = len(self.shape) > 16 or any(not 1 <= side <= LONGEST for side in self.shape)
        _refuse(sides, f"{self.name!r:.80} has the shape {self.shape!r:.80}")

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class CacheSpec(TensorSpec):
    """A tensor of a stream's memory.

    Attributes:
        source: ``keyframe``, an output of that graph, or ``frame``, the keyframe itself.
        scale: s when it is held in integers, else None; they stand for ``scale * (integer - zero_point)``.
        zero_point: integer that stands for 0.
        bits: bits of its grid, 32 for float.
        layers: which layers read it, as residual reference (x) or past output (z).
    """

    source: str
    scale: float | None
    bits: int
    layers: tuple[str, ...]
    zero_point: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse(self.source not in ("keyframe", FRAME), f"{self.name!r:.80} has the source {self.source!r:.80}")
        _refuse(not 2 <= self.bits <= 32, f"{self.name!r:.80} has {self.bits!r:.80} bits")
        if self.scale is None:
            _refuse(self.dtype != "float32" or self.zero_point, f"{self.name!r:.80} is on a grid without a scale")
            return
        _refuse(self.dtype not in INTEGERS, f"{self.name!r:.80} has a scale and the type {self.dtype}")
        ends = np.iinfo(self.dtype)
        _refuse(
            not ends.min <= self.zero_point <= ends.max, f"{self.name!r:.80} has zero_point {self.zero_point!r:.80}"
        )
        _refuse(not 0 < self.scale < 1e33, f"{self.name!r:.80} has scale {self.scale}")  # floats hold its values

    def values(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """The float32 values that an array of it stands for, always a copy."""
        if self.scale is None:
            return array.astype(np.float32)
        values: NDArray[np.float32] = (array.astype(np.float32) - self.zero_point) * np.float32(self.scale)
        return values

    def integers(self, array: NDArray[np.float32]) -> NDArray[Any]:
        """What holds these values: the nearest integers, or the values themselves where it holds floats."""
        if self.scale is None:
            return array
        ends = np.iinfo(self.dtype)
        steps = np.rint(array / np.float32(self.scale)) + self.zero_point
        held: NDArray[Any] = np.clip(steps, ends.min, ends.max).astype(self.dtype)
        return held


@dataclass(frozen=True)
class GraphSpec:
    """One graph.

    Attributes:
        inputs: in order.
        outputs: in order; those of the model first.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for tensors in (self.inputs, self.outputs):
            names = [tensor.name for tensor in tensors]
            _refuse(len(set(names)) != len(names), f"a name occurs twice in {names!r:.200}")


@dataclass(frozen=True)
class HtpSpec:
    """What Qualcomm's HTP runs: the graphs below ``htp/``, which hold their memory in integers.

    Attributes:
        arch: version of the HTP they were compiled for.
        soc: Qualcomm's number of the chip, if one was named.
        graphs: ``keyframe`` and ``residual``.
        caches: memory of a stream.
    """

    arch: int
    soc: int | None
    graphs: Mapping[str, GraphSpec]
    caches: tuple[CacheSpec, ...]


@dataclass(frozen=True)
class LayerSpec:
    """Precision of one layer, and the integer types that carry it in the QDQ graphs.

    Attributes:
        name: qualified name in the model.
        precision: the paper's notation.
        containers: of the weight and the quantizers of each path, e.g. ``{"keyframe": ("W int8", "A int8"),
            "residual": ("W int4", "A int8 (carries 4 bits, clipped)")}``.
    """

    name: str
    precision: str
    containers: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class FileSpec:
    """A file of the folder.

    Attributes:
        bytes: size.
        sha256: checksum.
    """

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _refuse(self.bytes < 0, f"a file has {self.bytes!r:.80} bytes")
        _refuse(not CHECKSUM.fullmatch(self.sha256), f"a file has the checksum {self.sha256!r:.80}")
