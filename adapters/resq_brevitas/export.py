"""The keyframe graph and the residual graph through Brevitas' own exporters: QCDQ ONNX and QONNX.

For a folder with a manifest, a player and its verification, and for dynamic pools: `resq_plugin.export.export_model`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resq_brevitas._compat import grid_of
from resq_brevitas.quantizers import settle
from resq_plugin.errors import ExportError, nearest
from resq_plugin.files import written_into
from resq_plugin.method import LayerCache, ResidualLayer, StreamState, executing, residual_layers

__all__ = ["FORMATS", "export_graphs"]

FORMATS = ("qcdq", "qonnx")


class KeyframeGraph(nn.Module):
    """frame -> outputs, and x and z of every call of a layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.state = StreamState()

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Run a keyframe (N, C, H, W)."""
        self.state.start_frame(0)
        with executing(self.state):
            outputs = tree_leaves(self.model(frame))
        return (*outputs, *_flat(self.state))


class ResidualGraph(nn.Module):
    """frame, and x and z of every call of a layer -> outputs; with ``reference="running"`` also the new x and z."""

    def __init__(self, model: nn.Module, keys: list[tuple[str, int]], is_running: bool) -> None:
        super().__init__()
        self.model = model
        self.keys = keys
        self.is_running = is_running

    def forward(self, frame: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """Run a residual frame (N, C, H, W)."""
        state = StreamState()
        pairs = zip(memory[::2], memory[1::2], strict=True)
        state.caches = {key: LayerCache(x, z) for key, (x, z) in zip(self.keys, pairs, strict=True)}
        state.start_frame(1)
        with executing(state):
            outputs = tree_leaves(self.model(frame))
        return (*outputs, *_flat(state)) if self.is_running else tuple(outputs)


def _flat(state: StreamState) -> list[Tensor]:
    return [tensor for cache in state.caches.values() for tensor in (cache.x, cache.z)]


@torch.no_grad()
def export_graphs(
    model: nn.Module, frame: Tensor, folder: str | os.PathLike[str], *, format: str = "qcdq", **options: Any
) -> dict[str, Path]:
    """Write ``keyframe.onnx`` and ``residual.onnx`` with Brevitas' exporters.

    The inputs of the residual graph are the frame and what the keyframe graph returns after its own outputs. QCDQ
    holds weights below 8 bits as clipped INT8; QONNX has the true bit widths.

    Args:
        model: calibrated, on the CPU; it is copied.
        frame: (N, C, H, W), whose shape the graphs keep.
        folder: where to write; it is made if need be, and files of other names stay.
        format: ``qcdq`` or ``qonnx``.
        options: for Brevitas' exporter and `torch.onnx.export`, e.g. ``dynamo=True``, ``opset_version=17``.

    Returns:
        The files by graph; a model without residual precision has a keyframe graph only.

    Raises:
        ExportError: unknown format, a layer that the format cannot hold, or no place to write; nothing is written.
    """
    if format not in FORMATS:
        msg = f"format={format!r} is not allowed; write 'qcdq' or 'qonnx'.{nearest(format, FORMATS)}"
        raise ExportError(msg)
    layers = residual_layers(model)
    for layer in layers.values():
        _check(layer, format)
    config = next(iter(layers.values())).settings.config
    model = copy.deepcopy(model).eval()
    for layer in residual_layers(model).values():
        _put_fold_into_weight(layer)
        layer.weight.copy_(settle(grid_of(layer.weight_quant), layer.weight))
    keyframe = KeyframeGraph(model)
    results = keyframe(frame)
    keys = list(keyframe.state.caches)
    memory = [f"{name}.{call}.{part}" for name, call in keys for part in ("x", "z")]
    returned = [f"output{index}" for index in range(len(results) - len(memory))]
    write = _exporter(format)
    files = {kind: f"{kind}.onnx" for kind in (("keyframe", "residual") if keys else ("keyframe",))}
    with written_into(folder, ExportError) as part:
        names = {"input_names": ["frame"], "output_names": [*returned, *memory]}
        write(keyframe, args=(frame,), export_path=str(part / files["keyframe"]), **names, **options)
        if keys:
            is_running = config.reference == "running"
            names = {
                "input_names": ["frame", *memory],
                "output_names": [*returned, *(f"{name}.new" for name in memory if is_running)],
            }
            graph = ResidualGraph(model, keys, is_running)
            arguments = (frame, *results[len(returned) :])
            write(graph, args=arguments, export_path=str(part / files["residual"]), **names, **options)
            _restore_inputs(part / files["residual"], dict(zip(names["input_names"], arguments, strict=True)))
    return {kind: Path(folder) / name for kind, name in files.items()}


def _restore_inputs(path: Path, inputs: Mapping[str, Tensor]) -> None:
    """Declare the inputs that the exporter left out: residuals of 0 bits look neither at the frame nor at x_k."""
    import onnx  # noqa: PLC0415

    model = onnx.load(path, load_external_data=False)
    found = {value.name: value for value in model.graph.input}
    missing = inputs.keys() - found.keys()
    if not missing:
        return
    for name in missing:
        shape = list(inputs[name].shape)
        found[name] = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    del model.graph.input[:]
    model.graph.input.extend(found[name] for name in (*inputs, *(name for name in found if name not in inputs)))
    onnx.save(model, path)


def _check(layer: ResidualLayer, format: str) -> None:
    settings = layer.settings
    if settings.residual is not None and settings.residual.is_dynamic:
        msg = (
            f"layer {settings.name} has the dynamic pool {settings.residual}, for which Brevitas' formats have no "
            "node; write resq_plugin.export.export_model(model, frame, folder)."
        )
        raise ExportError(msg)
    state = settings.config.state
    if (state.reference_bits, state.output_bits) != (None, None):
        msg = (
            f"state={{'reference_bits': {state.reference_bits}, 'output_bits': {state.output_bits}}} has grids that a "
            "stream measures at every keyframe, for which Brevitas' formats have no node; write state={}."
        )
        raise ExportError(msg)
    is_grouped = getattr(layer, "transposed", False) and layer.groups > 1
    if format == "qcdq" and is_grouped and settings.config.weights == "channel":
        msg = (
            f"layer {settings.name} is a grouped transposed convolution with a range per channel, which "
            "QuantizeLinear cannot hold; convert with weights='tensor', or write format='qonnx'."
        )
        raise ExportError(msg)


def _put_fold_into_weight(layer: Any) -> None:
    """Brevitas' exporters know a weight by its place in memory, so a folded one must be the Parameter."""
    if layer.folded_norm is None:
        return
    weight, bias = layer.float_weight()
    layer.weight.copy_(weight)
    layer.bias = nn.Parameter(bias)
    layer._folded.clear()


def _exporter(format: str) -> Callable[..., Any]:
    from brevitas.export import export_onnx_qcdq, export_qonnx  # noqa: PLC0415  # takes onnx, and is slow

    return export_onnx_qcdq if format == "qcdq" else export_qonnx
