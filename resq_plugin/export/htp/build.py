"""The ``htp`` part of an exported folder: both graphs in integers, and compiled if asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray

from resq_plugin.errors import ExportError
from resq_plugin.export.golden import Golden
from resq_plugin.export.grid import Grid
from resq_plugin.export.htp.faults import coarser_grids, limit_clips, replace_norms
from resq_plugin.export.htp.layers import OPERATORS
from resq_plugin.export.htp.quantize import integer_memory, quantize_graph
from resq_plugin.export.htp.session import htp_session
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.player import OrtStream
from resq_plugin.export.specs import CacheSpec, GraphSpec, HtpSpec, TensorSpec

__all__ = ["FOLDER", "FloatGraph", "HtpConfig", "build_htp", "check_work"]

logger = logging.getLogger(__name__)

FOLDER = "htp"

Array = NDArray[Any]


@dataclass(frozen=True)
class HtpConfig:
    """For which HTP to export.

    Attributes:
        arch: version of the HTP, e.g. 75.
        soc: Qualcomm's number of the chip, e.g. 57; None compiles for any with that HTP.
        compile: also write what a device loads (context binaries).
    """

    arch: int = 75
    soc: int | None = None
    compile: bool = True


@dataclass(frozen=True)
class FloatGraph:
    """A float graph with its grids, as `resq_plugin.export.rewrite.to_encodings` makes it with ``clip=True``."""

    model: onnx_ir.Model
    activations: Mapping[str, Grid]
    weights: Mapping[str, Grid]


def build_htp(
    folder: Path, manifest: Manifest, graphs: Mapping[str, FloatGraph], golden: Golden, config: HtpConfig
) -> HtpSpec:
    """Write ``htp/keyframe.onnx`` and ``htp/residual.onnx``, and their compiled forms.

    Args:
        folder: the folder with both QDQ graphs and ``manifest``.
        manifest: of the graphs for the CPU, which supply the memory that ranges are found on.
        graphs: the float graphs.
        golden: its clip is what ranges of additions, outputs and memory are found on.
        config: for which HTP.

    Raises:
        RefusedError: the HTP refuses operators.
    """
    target = folder / FOLDER
    target.mkdir()
    feeds = _feeds(folder, manifest, golden)
    moved = {cache.name for cache in manifest.caches if cache.source == "keyframe"}
    memory = _memory_grids(manifest, feeds["residual"], graphs["keyframe"].activations)
    specs = {}
    for kind, graph in graphs.items():
        path = target / f"{kind}.onnx"
        given = {f"{prefix}{name}": grid for prefix in ("", "new.") for name, grid in memory.items()}
        weights = {**graph.weights, **replace_norms(graph.model)}
        read = _drop_unread(graph.model)
        seen = [{name: feed[name] for name in read} for feed in feeds[kind]]
        activations = {**given, **graph.activations}
        quantize_graph(graph.model, path, activations, weights, seen)
        coarser = coarser_grids(path)
        for node in graph.model.graph:
            if node.op_type == "Identity":  # a copy for a further output has the same grid
                names = {node.inputs[0].name, node.outputs[0].name}
                coarser |= {name: grid for other, grid in coarser.items() if other in names for name in names}
        if coarser:
            quantize_graph(graph.model, path, {**activations, **coarser}, weights, seen)
        limit_clips(path)
        new = tuple(moved | {f"new.{name}" for name in moved})
        memory |= integer_memory(path, tuple(moved), new, {**given, **graph.activations})
        specs[kind] = _spec(path)
        context = target / f"{kind}_context.onnx" if config.compile else None
        htp_session(path, config.arch, config.soc, context=context)
        logger.info("the HTP (v%d) takes the whole %s graph", config.arch, kind)
    caches = tuple(_cache(cache, memory.get(cache.name)) for cache in manifest.caches)
    return HtpSpec(config.arch, config.soc, specs, caches)


def check_work(graph: FloatGraph) -> None:
    """Refuse a residual graph without any work: its outputs are memory, or made of it.

    Raises:
        ExportError: it has none.
    """
    if not any(node.op_type in OPERATORS for node in graph.model.graph):
        msg = (
            "residual frames would repeat the keyframe's output, because residuals of 0 bits leave no layer to run, "
            "and the HTP takes no such graph; give residuals bits, e.g. 'W8A8->W4A8', or export 'W8A8' and run it on "
            "keyframes only."
        )
        raise ExportError(msg)


def _drop_unread(model: onnx_ir.Model) -> list[str]:
    """Take away the inputs that nobody reads, which the compiler would not take, and name the others."""
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.uses()]
    return [value.name for value in model.graph.inputs]


def _memory_grids(manifest: Manifest, feeds: list[dict[str, Array]], known: Mapping[str, Grid]) -> dict[str, Grid]:
    """Grids of the memory that is float on the CPU, over all its values on the clip.

    The quantizer would give an output that a ReLU follows the range behind the ReLU, but residual frames need all.
    """
    grids = {}
    for cache in manifest.caches:
        if cache.name not in known and cache.source == "keyframe":
            low = min(0.0, *(float(feed[cache.name].min()) for feed in feeds))
            high = max(0.0, *(float(feed[cache.name].max()) for feed in feeds))
            scale = max((high - low) / 255, 1e-12)
            grids[cache.name] = Grid((float(np.float32(scale)),), 8, signed=False, zero_point=round(-low / scale))
    return grids


def _feeds(folder: Path, manifest: Manifest, golden: Golden) -> dict[str, list[dict[str, Array]]]:
    """What the float graphs read when the golden clip is played as a stream."""
    player = OrtStream(folder, manifest=manifest)
    feeds: dict[str, list[dict[str, Array]]] = {"keyframe": [], "residual": []}
    memory = player.memory_arrays
    for frame in golden.frames:
        before = memory()
        player(frame)
        kind = "keyframe" if player.is_keyframe else "residual"
        feeds[kind].append({"frame": frame, **({} if player.is_keyframe else before)})
    return feeds


def _spec(path: Path) -> GraphSpec:
    graph = onnx.load(path).graph

    def tensors(values: Any) -> tuple[TensorSpec, ...]:
        found = []
        for value in values:
            kind = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            found.append(TensorSpec(value.name, tuple(d.dim_value for d in kind.shape.dim), np.dtype(dtype).name))
        return tuple(found)

    return GraphSpec(tensors(graph.input), tensors(graph.output))


def _cache(cache: CacheSpec, grid: Grid | None) -> CacheSpec:
    if grid is None:
        return cache
    return CacheSpec(
        name=cache.name,
        shape=cache.shape,
        dtype=grid.container,
        source=cache.source,
        scale=grid.scale[0],
        zero_point=grid.zero_point,
        bits=grid.bits,
        layers=cache.layers,
    )
