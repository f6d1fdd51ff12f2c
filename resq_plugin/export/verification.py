"""``resq verify``: each graph against torch on the same memory, and the whole clip as one stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_plugin.export.compare import TensorDifference, difference
from resq_plugin.export.golden import GOLDEN, Golden, Noise, sampled
from resq_plugin.export.player import OrtStream

__all__ = ["Verification", "verify"]

Array = NDArray[Any]

LEAST_BEYOND = 1e-4


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        tensors: every output and new memory tensor of both graphs, worst first.
        limits: per graph what counts as equal: 1 LSB everywhere or, where that is more, twice what torch differs from
            itself with its other convolution kernels, in LSB and in the share of elements beyond one. Deep nets need
            it: sums in another order flip a rounding of an early layer, and every flip moves the roundings behind it.
        agreement: percent of equal argmax (over channels) of the first output, the clip played as one stream.
        frames: length of the clip.
    """

    tensors: tuple[TensorDifference, ...]
    limits: Mapping[str, Noise]
    agreement: float
    frames: int

    @property
    def passed(self) -> bool:
        """Whether both graphs are equal to torch within their limits."""
        return all(
            self.worst(graph) <= limit.lsb and self.beyond(graph) <= limit.beyond
            for graph, limit in self.limits.items()
        )

    def worst(self, graph: str) -> float:
        """Largest difference of a graph in LSB; 0 if there is no such graph."""
        return max((tensor.lsb for tensor in self.tensors if tensor.graph == graph), default=0.0)

    def beyond(self, graph: str) -> float:
        """Largest share, over the tensors of a graph, of elements that differ by more than an LSB."""
        return max((tensor.beyond for tensor in self.tensors if tensor.graph == graph), default=0.0)


def verify(folder: str | PathLike[str], *, device: str = "cpu", threads: int = 0) -> Verification:
    """Play the golden clip of an exported folder and compare with what torch computed at the export.

    Args:
        folder: written by `resq_plugin.export.export_model`.
        device: as in `OrtStream`.
        threads: as in `OrtStream`.

    Raises:
        ExportError: a file is missing or was changed, or the device refuses a graph.
    """
    player = OrtStream(folder, device=device, threads=threads)
    golden = Golden.read(Path(folder) / GOLDEN)
    found: dict[tuple[str, str], list[tuple[Array, Array]]] = {}
    for kind, table, frames in (
        ("keyframe", golden.keyframe, golden.frames),
        ("residual", golden.residual, golden.frames[1:]),
    ):
        for frame, expected in zip(frames, table, strict=bool(table)):
            memory, target = player.allocate(), player.allocate()
            for name, array in golden.memory.items():
                memory[name].update_inplace(array)
            results = player.run(kind, frame, memory, target)
            for name, array in expected.items():
                value = results[name] if name in results else sampled(target[name.removeprefix("new.")].numpy())
                found.setdefault((kind, name), []).append((value, array))
    tensors = [difference(kind, name, pairs) for (kind, name), pairs in found.items()]
    player.reset()
    first = player.manifest.outputs[0]
    equal = []
    for frame, outputs in zip(golden.frames, golden.stream, strict=True):
        result = player(frame)
        ours = result[0] if isinstance(result, tuple) else result
        equal.append((ours.argmax(1) == outputs[first].argmax(1)).mean())
    ranked = tuple(sorted(tensors, key=lambda tensor: -tensor.lsb))
    limits = {graph: _limit(golden.noise[graph]) for graph in player.graphs}
    return Verification(ranked, limits, 100 * float(np.mean(equal)), len(golden.frames))


def _limit(noise: Noise) -> Noise:
    """Twice the noise, but nothing stricter than 1 LSB."""
    return Noise(max(1.0, 2 * noise.lsb), max(LEAST_BEYOND, 2 * noise.beyond))
