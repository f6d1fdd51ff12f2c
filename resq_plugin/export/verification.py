"""``resq verify``: each graph against torch on the same memory, and the whole clip as one stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_plugin.errors import ExportError
from resq_plugin.export.difference import TensorDifference, classes, difference, sampled
from resq_plugin.export.golden import Golden
from resq_plugin.export.manifest import GOLDEN, PARTS, Manifest
from resq_plugin.export.parts import Cut, Part, check_parts, cut_graph, read_parts
from resq_plugin.export.player import OrtStream
from resq_plugin.export.sessions import cpu_session, running
from resq_plugin.export.specs import FRAME, CacheSpec

__all__ = ["Verification", "verify"]

Array = NDArray[Any]

PART_LIMIT = 1.0
RARE = 0.01
"""Share of a part that may fall on the other side of a rounding, or of τ."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        parts: what every layer quantizes and computes on its own, and the model's outputs, of both graphs
            (`resq_plugin.export.parts`), worst first; at most 1 LSB, and more than half of one in at
            most 1 % of the elements, is equal.
        tensors: every output and new memory tensor of both graphs as a whole, worst first. Through a deep net a float
            sum in another order flips a rounding, and every flip moves the roundings behind it, so that torch differs
            from itself by several LSB from run to run: this is told, and not judged.
        agreement: percent of equal argmax (over channels) of the first output, the clip played as one stream.
        frames: length of the clip.
        is_still: whether all residual frames have the same outputs, so that their equality says nothing.
        is_constant: whether torch's argmax is one and the same everywhere, so that ``agreement`` says nothing.
    """

    parts: tuple[TensorDifference, ...]
    tensors: tuple[TensorDifference, ...]
    agreement: float
    frames: int
    is_still: bool = False
    is_constant: bool = False

    @property
    def passed(self) -> bool:
        """Whether every part is equal to torch."""
        return not self.wrong

    @property
    def wrong(self) -> tuple[TensorDifference, ...]:
        """The parts that are not equal."""
        return tuple(part for part in self.parts if part.lsb > PART_LIMIT or part.share > RARE)

    def worst_part(self, graph: str) -> float:
        """Largest difference of a part of a graph in LSB; 0 if there is no such graph."""
        return _worst(self.parts, graph)

    def worst(self, graph: str) -> float:
        """Largest difference of a graph as a whole in LSB; 0 if there is no such graph."""
        return _worst(self.tensors, graph)


def _worst(tensors: tuple[TensorDifference, ...], graph: str) -> float:
    return max((tensor.lsb for tensor in tensors if tensor.graph == graph), default=0.0)


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
    golden = Golden.read(Path(folder) / GOLDEN, player.manifest)
    all_parts, all_cuts = _read_parts(Path(folder), player.manifest)
    here, there = ({cache.name: cache for cache in owner.caches} for owner in (player.manifest, player))
    found: dict[tuple[str, str], list[tuple[Array, Array]]] = {}
    for kind, table, frames in (
        ("keyframe", golden.keyframe, golden.frames),
        ("residual", golden.residual, golden.frames[1:]),
    ):
        for frame, expected in zip(frames, table, strict=bool(table)):
            memory, target = player.allocate(), player.allocate()
            for name, array in golden.memory.items():
                memory[name].update_inplace(_held(array, here[name], there[name]))
            results = player.run(kind, frame, memory, target)
            for name, array in expected.items():
                cache = name.removeprefix("new.")
                pair = results[name] if name in results else sampled(target[cache].numpy()), array
                if name not in results and here[cache] != there[cache]:  # held in other integers
                    pair = there[cache].values(pair[0]), here[cache].values(array)
                found.setdefault((kind, name), []).append(pair)
    tensors = [difference(kind, name, pairs) for (kind, name), pairs in found.items()]
    player.reset()
    first = player.manifest.outputs[0]
    equal = []
    for frame, outputs in zip(golden.frames, golden.stream, strict=True):
        result = player(frame)
        ours = result[0] if isinstance(result, tuple) else result
        equal.append((classes(ours) == classes(outputs[first])).mean())
    parts = [
        part
        for kind in player.manifest.graphs
        for part in _parts(Path(folder), kind, all_parts[kind], all_cuts[kind], player.manifest, golden, threads)
    ]
    agreement = 100 * float(np.mean(equal))
    labels = [classes(outputs[first]) for outputs in golden.stream]
    is_constant = len({int(value) for label in labels for value in (label.min(), label.max())}) == 1
    return Verification(
        _ranked(parts), _ranked(tensors), agreement, len(golden.frames), _is_still(golden), is_constant
    )


def _is_still(golden: Golden) -> bool:
    names = golden.stream[0]
    first, *rest = golden.residual or ({},)
    return bool(rest) and all(np.array_equal(first[name], outputs[name]) for outputs in rest for name in names)


def _held(array: Array, here: CacheSpec, there: CacheSpec) -> Array:
    """Memory as a device holds it, of memory as the CPU holds it."""
    return array if here == there else there.integers(here.values(array))


def _read_parts(folder: Path, manifest: Manifest) -> tuple[dict[str, list[Part]], dict[str, list[Cut]]]:
    """The parts of every graph, checked against it."""
    path = folder / PARTS
    parts, cuts = read_parts(path)
    if parts.keys() != manifest.graphs.keys():
        msg = f"{path} has parts of {', '.join(parts) or 'no graph'}; export the model again."
        raise ExportError(msg)
    memory = {cache.name: cache.shape for cache in manifest.caches}
    for kind, items in parts.items():
        check_parts(folder / f"{kind}.onnx", items, cuts[kind], [layer.name for layer in manifest.layers])
        for part in items:
            if part.base is not None and memory.get(part.base) != part.shape:
                msg = f"{path} adds {part.name!r:.80} to {part.base!r:.80}, which is not of its shape; export again."
                raise ExportError(msg)
    return parts, cuts


def _parts(
    folder: Path,
    kind: str,
    expected: list[Part],
    cuts: list[Cut],
    manifest: Manifest,
    golden: Golden,
    threads: int,
) -> list[TensorDifference]:
    """Every part of a graph, on the CPU whatever the device."""
    session = cpu_session(cut_graph(folder / f"{kind}.onnx", cuts), threads)
    memory = {cache.name: cache.values(golden.memory[cache.name]) for cache in manifest.caches}
    known = {**golden.memory, FRAME: golden.frames[0 if kind == "keyframe" else 1]}
    inputs = {spec.name: known[spec.name] for spec in manifest.graphs[kind].inputs}
    inputs |= {f"{part.name}.given": part.handed_on(memory) for part in expected if part.amplitude}
    tensors = {cut.name: cut.value for cut in cuts}
    with running(f"the parts of {folder / kind}.onnx"):
        results = session.run([tensors.get(part.name, part.name) for part in expected], inputs)
    return [_compare(kind, part, sampled(result)) for part, result in zip(expected, results, strict=True)]


def _compare(kind: str, part: Part, found: Array) -> TensorDifference:
    arrays = [found, part.expected]
    if part.lsb is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            arrays = [np.rint(array / np.float32(part.lsb)) for array in arrays]
    if part.is_chosen:
        order = np.argsort(np.abs(arrays[0].astype(np.float64) - arrays[1]))
        arrays = [array[order[: math.ceil((1 - RARE) * len(order))]] for array in arrays]
    return difference(kind, part.name, [(arrays[0], arrays[1])], None if part.lsb is None else 1.0)


def _ranked(tensors: list[TensorDifference]) -> tuple[TensorDifference, ...]:
    return tuple(sorted(tensors, key=lambda tensor: -tensor.lsb))
