"""``resq verify DIR --target htp``: both graphs and their layers on the HTP against the CPU and torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from resq_plugin.export.difference import TensorDifference, classes, difference, sampled
from resq_plugin.export.golden import Golden
from resq_plugin.export.htp.build import FOLDER
from resq_plugin.export.htp.layers import LAYER_LIMIT, LayerDifference, compare_layers
from resq_plugin.export.manifest import GOLDEN, Manifest
from resq_plugin.export.sessions import integer_session, open_session, target_of
from resq_plugin.export.specs import FRAME, CacheSpec, HtpSpec, LayerSpec

__all__ = ["LAYER_LIMIT", "GraphDifference", "HtpVerification", "split_native", "verify_htp"]

Array = NDArray[Any]
Pairs = dict[str, list[tuple[Array, Array]]]

GRAPH_LIMIT = 2.0
"""LSB that a graph may always differ from torch."""


@dataclass(frozen=True)
class GraphDifference:
    """A whole graph on the HTP.

    Attributes:
        graph: ``keyframe`` or ``residual``.
        tensors: every output and new memory tensor against ONNX Runtime on the CPU, worst first.
        lsb: largest difference of any tensor from torch, in LSB.
        limit: twice the largest difference of the same integers on the CPU from torch, or 2 LSB. What lies between
            the layers is 8 bits here and float in torch, so the CPU differs, too; the HTP must not differ more.
        agreement_cpu: percent of equal argmax (over channels) of the first output with the CPU.
        agreement_torch: the same with torch.
        lsb_cpu: as ``lsb``, of the same integers on the CPU.
        watched: largest difference between the graph and the one that also hands out what is inside it, in LSB; 0 if
            the layers were not run. It shows that the layers were compared in the program that a device runs.
    """

    graph: str
    tensors: tuple[TensorDifference, ...]
    lsb: float
    limit: float
    agreement_cpu: float
    agreement_torch: float
    lsb_cpu: float = 0.0
    watched: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the graph is as close to torch as the limit asks, and is the one whose layers were compared."""
        return self.lsb <= self.limit and self.watched <= LAYER_LIMIT


@dataclass(frozen=True)
class HtpVerification:
    """What `verify_htp` found.

    Attributes:
        graphs: both graphs as a whole; every operator ran on the HTP.
        layers: every operator inside, on the integers that the HTP computed before it, worst first.
        precisions: every layer with its precision and the integers that hold it; the bit widths of entries with
            ``carries`` ride in wider integers, all others are native.
    """

    graphs: tuple[GraphDifference, ...]
    layers: tuple[LayerDifference, ...]
    precisions: tuple[LayerSpec, ...]

    @property
    def passed(self) -> bool:
        """Whether every layer and both graphs are within their limits."""
        return all(layer.passed for layer in self.layers) and all(graph.passed for graph in self.graphs)

    @property
    def carried(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a layer to what is not native in it, e.g. ``residual A int8 (carries 4 bits, clipped)``."""
        found = {layer.name: split_native(layer)[1] for layer in self.precisions}
        return {name: texts for name, texts in found.items() if texts}

    @property
    def worst_layer(self) -> int:
        """Largest difference of an operator on the same integers, in LSB of its output."""
        return max((layer.lsb for layer in self.layers), default=0)


def verify_htp(
    folder: str | PathLike[str],
    *,
    frames: int = 2,
    layers: bool = True,
    on_step: Callable[[str, int], object] = lambda *_: None,
) -> HtpVerification:
    """Run both graphs on the HTP with CPU fallback off and compare.

    Args:
        folder: exported with ``htp=HtpConfig()``.
        frames: frames of the golden clip; the emulation is slow.
        layers: also compare every operator inside.
        on_step: told what begins, and of how many steps it is one.

    Raises:
        ExportError: a file is missing or was changed, or the folder was not exported for the HTP.
        RefusedError: the HTP refuses operators.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    manifest.check(folder)
    target = cast(HtpSpec, target_of(manifest, "htp"))
    golden = Golden.read(folder / GOLDEN, manifest)
    tables = {"keyframe": (golden.frames, golden.keyframe), "residual": (golden.frames[1:], golden.residual)}
    graphs: list[GraphDifference] = []
    singles: list[LayerDifference] = []
    total = sum(1 + layers + len(tables[kind][0][:frames]) for kind in target.graphs)
    for kind in target.graphs:
        inputs, expected = tables[kind]
        feeds = [_feed(manifest, target, kind, frame, golden) for frame in inputs[:frames]]
        watched: Mapping[str, Array] = {}
        if layers:
            on_step(f"{kind} graph: operators", total)
            found, watched = compare_layers(folder / FOLDER / f"{kind}.onnx", target.arch, target.soc, feeds[0])
            singles += found
        told = partial(on_step, f"{kind} graph", total)
        graphs.append(_compare(folder, manifest, kind, feeds, expected[:frames], watched, told))
    return HtpVerification(
        tuple(graphs), tuple(sorted(singles, key=lambda layer: (layer.passed, -layer.lsb))), manifest.layers
    )


def split_native(layer: LayerSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is native in a layer, and what is carried by wider integers, e.g. ``keyframe W int8``."""
    texts = [f"{kind} {text}" for kind, part in layer.containers.items() for text in part]
    rides = [" (carries " in text for text in texts]
    native, carried = (tuple(t for t, r in zip(texts, rides, strict=True) if r is kind) for kind in (False, True))
    return native, carried


def _feed(manifest: Manifest, target: HtpSpec, kind: str, frame: Array, golden: Golden) -> dict[str, Array]:
    memory = {
        here.name: there.integers(here.values(golden.memory[here.name]))
        for here, there in zip(manifest.caches, target.caches, strict=True)
    }
    known = {**memory, FRAME: frame}
    return {spec.name: known[spec.name] for spec in target.graphs[kind].inputs}


def _compare(
    folder: Path,
    manifest: Manifest,
    kind: str,
    feeds: list[dict[str, Array]],
    expected: Sequence[Mapping[str, Array]],
    watched: Mapping[str, Array],
    on_step: Callable[[], object],
) -> GraphDifference:
    on_step()  # both graphs are compiled
    sessions = open_session(folder, manifest, kind, "htp"), integer_session(folder / FOLDER / f"{kind}.onnx")
    names = [value.name for value in sessions[0].get_outputs()]
    here = {cache.name: cache for cache in manifest.caches}
    there = {cache.name: cache for cache in cast(HtpSpec, manifest.htp).caches}
    each: Pairs = {name: [] for name in names}
    htp: Pairs = {name: [] for name in names}
    cpu: Pairs = {name: [] for name in names}
    for feed, torch in zip(feeds, expected, strict=True):
        on_step()
        for name, ours, theirs in zip(names, *(session.run(names, feed) for session in sessions), strict=True):
            each[name].append((ours, theirs))
            value = _values(torch[name], here.get(name.removeprefix("new.")))
            for pairs, found in ((htp, ours), (cpu, theirs)):
                pairs[name].append((_values(found, there.get(name.removeprefix("new."))), value))
    first = manifest.outputs[0]
    lsb_cpu = max(tensor.lsb for tensor in _differences(kind, cpu))
    again = {name: [(each[name][0][0], array)] for name, array in watched.items()}
    return GraphDifference(
        kind,
        tuple(sorted(_differences(kind, each), key=lambda tensor: -tensor.lsb)),
        max(tensor.lsb for tensor in _differences(kind, htp)),
        max(GRAPH_LIMIT, 2 * lsb_cpu),
        _agreement(each[first]),
        _agreement(htp[first]),
        lsb_cpu,
        max((tensor.lsb for tensor in _differences(kind, again)), default=0.0),
    )


def _values(array: Array, cache: CacheSpec | None) -> Array:
    """Floats that can be compared with what the golden clip holds of a tensor."""
    return array if cache is None else sampled(cache.values(array))


def _differences(kind: str, pairs: Pairs) -> list[TensorDifference]:
    return [difference(kind, name, values) for name, values in pairs.items()]


def _agreement(pairs: list[tuple[Array, Array]]) -> float:
    return 100 * float(np.mean([(classes(ours) == classes(theirs)).mean() for ours, theirs in pairs]))
