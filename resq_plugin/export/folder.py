"""`export_model`: a calibrated ResQ model to a folder that runs without it."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from resq_plugin import __version__
from resq_plugin.backends import find_backend
from resq_plugin.conversion import summarize
from resq_plugin.errors import ExportError
from resq_plugin.export.caches import Cache, CachePlan, plan_caches
from resq_plugin.export.clip import as_clip, check_length, check_state, warn_of_dead_weights
from resq_plugin.export.encodings import VERSIONS, check_versions, encodings_file
from resq_plugin.export.golden import caches_of, golden_clip
from resq_plugin.export.grid import Grid
from resq_plugin.export.htp.build import FloatGraph, HtpConfig, build_htp, check_work
from resq_plugin.export.manifest import GOLDEN, PARTS, Manifest
from resq_plugin.export.numbers import LayerNumbers, read_numbers
from resq_plugin.export.part_numbers import compute_parts
from resq_plugin.export.parts import Cut, Part, write_parts
from resq_plugin.export.replaced import check_export_folder, check_replaced
from resq_plugin.export.rewrite import to_encodings, to_qdq
from resq_plugin.export.specs import CacheSpec, GraphSpec, LayerSpec, TensorSpec
from resq_plugin.export.trace import Traced, trace_keyframe, trace_residual
from resq_plugin.files import json_text, written_folder
from resq_plugin.method import make_schedule, residual_layers

__all__ = ["export_model"]

logger = logging.getLogger(__name__)


def export_model(
    model: nn.Module,
    frames: Tensor | Sequence[Tensor],
    folder: str | os.PathLike[str],
    *,
    encodings: Sequence[str] = VERSIONS,
    htp: HtpConfig | None = None,
    on_step: Callable[[str, int], None] = lambda *_: None,
) -> Manifest:
    """Write the keyframe graph and the residual graph of a model, with all that is needed to run them.

    The folder gets ``keyframe.onnx`` (frame -> outputs, memory) and ``residual.onnx`` (frame, memory -> outputs, and
    new memory with ``reference="running"``) with QuantizeLinear and DequantizeLinear nodes, the same as float graphs
    with encodings for Qualcomm's converters, a golden clip and ``manifest.json``. It appears whole or not at all. An
    earlier export there is replaced as long as nothing was added to it or changed in it; a link stays a link.

    Args:
        model: converted and calibrated, on the CPU, any backend.
        frames: consecutive frames of the shape that the graphs keep: a list of (N, C, H, W), or a tensor (T, C, H, W)
            of one video, as in calibration, or (T, N, C, H, W). Up to 10 become the golden clip; a model with residual
            frames needs two at least.
        folder: where to write.
        encodings: versions of the encodings files.
        htp: also write both graphs for Qualcomm's HTP; ranges of what lies between the layers come from ``frames``.
        on_step: told before each step what comes, and how many steps there are in all.

    Returns:
        What was written.

    Raises:
        ExportError: the model, a frame or the folder is not fit; nothing is written.
        ConfigError: unknown version of encodings.
    """
    check_versions(tuple(encodings))
    clip = as_clip(model, frames)
    check_export_folder(folder)
    config = next(iter(residual_layers(model).values())).settings.config
    check_state(config)
    numbers = read_numbers(model, clip[0])
    is_stream = config.residual is not None
    if is_stream:
        check_length(clip)
        warn_of_dead_weights(numbers)
    plan = plan_caches(model, clip[0], numbers, config.reference) if is_stream else CachePlan((), {}, {})
    schedule = make_schedule(model, config)
    if schedule.is_spread:
        msg = (
            "schedule.kind='spread' is not exported: it refreshes other layers in every frame, and the two graphs run "
            "the keyframe path of all layers or of none. Convert with schedule=dict(kind='interval')."
        )
        raise ExportError(msg)
    traces = {"keyframe": trace_keyframe} | ({"residual": trace_residual} if plan.caches else {})
    caches = {cache.name: cache for cache in plan.caches}
    extra: dict[nn.Module, Grid] = getattr(find_backend(config.backend), "export_quantizers", lambda _: {})(model)

    steps = 2 * len(traces) + 1 + (htp is not None)

    def traced(kind: str) -> Traced:
        return traces[kind](model, clip[0], numbers, plan, extra)

    with written_folder(folder, check_replaced, ExportError) as part:
        graphs, names, floats, cuts = {}, [], {}, {}
        for kind in traces:
            on_step(f"{kind} graph", steps)
            trace = traced(kind)
            names = [value.name for value in trace.model.graph.outputs[: trace.outputs]]
            graph, cuts[kind] = to_qdq(trace, caches)
            _save(graph, part / f"{kind}.onnx")
            graphs[kind] = GraphSpec(_tensors(graph.graph.inputs), _tensors(graph.graph.outputs))
            _write_encodings(part / "encodings", kind, traced(kind), caches, encodings)
            if htp is not None:
                floats[kind] = FloatGraph(*to_encodings(traced(kind), caches, clip=True)[:3])
                check_work(floats[kind])
        on_step("golden clip", steps)
        golden = golden_clip(model, clip, plan, names, schedule.interval)
        golden.write(part / GOLDEN)
        on_step("layers of the keyframe graph", steps)
        parts = {"keyframe": compute_parts(model, torch.from_numpy(golden.frames[0]), numbers, names, plan)}
        if plan.caches:
            on_step("layers of the residual graph", steps)
            frame, past = torch.from_numpy(golden.frames[1]), caches_of(golden.memory, plan)
            parts["residual"] = compute_parts(model, frame, numbers, names, plan, past)
        write_parts(part / PARTS, *_present(parts, cuts))
        manifest = Manifest(
            versions=_versions(),
            config=config.to_dict(),
            interval=schedule.interval if plan.caches else 1,
            scene_threshold=schedule.scene_threshold,
            graphs=graphs,
            outputs=tuple(names),
            caches=tuple(_cache(cache) for cache in plan.caches),
            layers=tuple(_layer(name, entry, model) for name, entry in numbers.items()),
            float_layers=summarize(model).excluded + summarize(model).unsupported,
        )
        if htp is not None:
            on_step("graphs for the HTP", steps)
            manifest = dataclasses.replace(manifest, htp=build_htp(part, manifest, floats, golden, htp))
        manifest = manifest.write(part)
    logger.info("exported %d layers and %d caches to %s", len(numbers), len(caches), folder)
    return manifest


def _present(
    parts: Mapping[str, Sequence[Part]], cuts: Mapping[str, Sequence[Cut]]
) -> tuple[dict[str, list[Part]], Mapping[str, Sequence[Cut]]]:
    """The parts whose cuts are in their graph: nothing is left of what only layers of 0 bits read."""
    names = {kind: {cut.name for cut in found} for kind, found in cuts.items()}
    return {
        kind: [p for p in items if not p.amplitude or p.name in names[kind]] for kind, items in parts.items()
    }, cuts


def _save(graph: onnx_ir.Model, path: Path) -> None:
    proto = onnx_ir.to_proto(graph)
    proto.ir_version = min(proto.ir_version, 10)  # opset 21 needs 10; older runtimes read no later one
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def _write_encodings(
    folder: Path, kind: str, traced: Traced, caches: dict[str, Cache], versions: Sequence[str]
) -> None:
    folder.mkdir(exist_ok=True)
    graph, activations, weights, biases = to_encodings(traced, caches)
    _save(graph, folder / f"{kind}.onnx")
    for number in versions:
        values = encodings_file(number, activations, weights, biases)
        text = json_text(values, indent=1) + "\n"
        (folder / f"{kind}.{number}.encodings").write_text(text, encoding="utf-8")


def _tensors(values: Sequence[onnx_ir.Value]) -> tuple[TensorSpec, ...]:
    try:
        return tuple(TensorSpec(v.name, tuple(v.shape.numpy()), v.dtype.numpy().name) for v in values)
    except (ValueError, TypeError) as error:
        found = ", ".join(f"{v.name} {v.shape} {v.dtype}" for v in values)
        msg = f"the graph has a tensor whose shape is not static, or of an unknown type: {found}."
        raise ExportError(msg) from error


def _cache(cache: Cache) -> CacheSpec:
    grid = cache.grid
    return CacheSpec(
        name=cache.name,
        shape=cache.shape,
        dtype="float32" if grid is None else grid.container,
        source=cache.source,
        scale=None if grid is None else grid.scale[0],
        bits=32 if grid is None else grid.bits,
        layers=cache.layers,
    )


def _layer(name: str, numbers: LayerNumbers, model: nn.Module) -> LayerSpec:
    settings = residual_layers(model)[name].settings
    sides = {"keyframe": (numbers.keyframe,)} | ({"residual": numbers.residual} if settings.residual else {})
    containers = {}
    for kind, grids in sides.items():
        absent = "quantized upstream" if kind == "keyframe" else "none (0 bits)"
        parts = [f"W {_carried(numbers.weights[kind].grid)}"]
        parts += [f"A {_carried(grid)}" if grid else f"A {absent}" for grid in grids]
        containers[kind] = tuple(parts)
    notation = f"{settings.keyframe}" + (f"->{settings.residual}" if settings.residual else "")
    return LayerSpec(name, notation, containers)


def _carried(grid: Grid) -> str:
    return grid.container + (f" (carries {grid.bits} bits, clipped)" if grid.is_carried else "")


def _versions() -> dict[str, str]:
    packages = {package: version(package) for package in ("onnx", "onnx-ir", "onnxscript")}
    own = {"resq-plugin": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**own, **packages}
