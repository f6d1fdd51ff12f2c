"""Markers to what a file format has: QuantizeLinear and DequantizeLinear nodes, or a float graph with encodings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir
import torch

from resq_plugin.export.caches import Cache
from resq_plugin.export.editor import Editor
from resq_plugin.export.grid import Grid
from resq_plugin.export.parts import Cut
from resq_plugin.export.trace import DOMAIN, Traced

__all__ = ["Encodings", "to_encodings", "to_qdq"]

Encodings = dict[str, Grid]
"""Tensor name to grid."""


def to_qdq(traced: Traced, caches: Mapping[str, Cache]) -> tuple[onnx_ir.Model, list[Cut]]:
    """Replace every marker by QuantizeLinear and DequantizeLinear, in place; also say where the graph may be cut.

    Weights become integers. A grid that is narrower than its integer type is clipped to its ends before it is
    quantized, which gives the integers of Eq. 1 exactly. Caches on a grid are integers. What only layers read whose
    residuals have 0 bits is not in the graph, and not cut.
    """
    editor = Editor(traced.model)
    names = _names(traced)
    for value in editor.graph.inputs:
        cache = caches.get(value.name)
        if cache is not None and cache.grid is not None:
            _integer_input(editor, value, cache.grid)
    for node, name, grid, values in _quantizers(editor, traced):
        if values is None:
            editor.replace(node, _quantize(editor, node, name, grid))
        else:
            editor.replace(node, _weight(editor, node, name, grid, values.cpu().numpy()))
    cuts = _remove_cuts(editor, traced)
    for index, name in enumerate(names):
        if name in caches and caches[name].grid is not None:
            producer = editor.graph.outputs[index].producer()
            editor.graph.outputs[index] = producer.inputs[0]
            producer.inputs[0].shape = onnx_ir.Shape(caches[name].shape)
    editor.separate_outputs(names)
    model = editor.finish()
    kept = {id(value) for node in model.graph for value in node.outputs}
    places = [
        (name, value.name, [(node.outputs[0].name, index) for node, index in uses])
        for name, value, uses in cuts
        if id(value) in kept
    ]
    return model, [Cut(name, value, tuple(readers)) for name, value, readers in places]


def to_encodings(
    traced: Traced, caches: Mapping[str, Cache], *, clip: bool = False
) -> tuple[onnx_ir.Model, Encodings, Encodings, Encodings]:
    """Remove every marker, in place, and return the float graph and encodings of activations, weights and biases.

    Weights hold the values of their grids in float. A tensor that layers read on different grids gets a node
    (Identity) for each further one, because an encoding belongs to a tensor. With ``clip``, for targets that only know
    integer types, that node clips to the ends of the grid instead; a grid narrower than its type gets one, too, and so
    does one on which a layer reads z_k or an output of the model, which then keep all of their own range.
    """
    editor = Editor(traced.model)
    names = _names(traced)
    activations: dict[onnx_ir.Value, Grid] = {}
    weights: Encodings = {}
    biases: Encodings = {}
    _remove_cuts(editor, traced)
    all_of_it = {
        value
        for name, value in zip(names, editor.graph.outputs, strict=True)
        if name not in caches or any(layer.endswith("(z)") for layer in caches[name].layers)
    }
    for node, name, grid, values in _quantizers(editor, traced):
        if values is None:
            value = node.inputs[0]
            has_own = value in all_of_it and activations.get(value) != grid
            if clip and (has_own or grid.is_carried or activations.get(value, grid) != grid):
                if not has_own:
                    activations.setdefault(value, grid)
                value = editor.insert(node, "Clip", [value, *_ends(editor, name, grid)], f"{name}.clipped")
                activations[value] = grid
            elif activations.setdefault(value, grid) != grid:
                value = editor.keep(node, value, name)
                activations[value] = grid
        else:
            value = editor.constant(name, values.cpu().numpy())
            weights[name] = grid
        editor.replace(node, value)
    for node in editor.graph:
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) == 3 else None
        if bias is not None and node.inputs[1].name in weights and node.inputs[0] in activations:
            weight = weights[node.inputs[1].name]
            name = f"{node.inputs[1].name.removesuffix('.weight')}.bias"
            if name not in biases:  # a layer may be called again
                bias.name = name
                biases[name] = _bias(activations[node.inputs[0]], weight)
            node.replace_input_with(2, editor.graph.initializers[name])
    kept = dict(zip(names, editor.graph.outputs, strict=True))
    editor.separate_outputs(names)
    encodings = {value.name: grid for value, grid in activations.items()}
    for name in {*kept, *(value.name for value in editor.graph.inputs)} & caches.keys():
        on_grid = caches[name].grid
        if on_grid is not None:
            encodings[name] = on_grid
    return editor.finish(), encodings, weights, biases


def _bias(activation: Grid, weight: Grid) -> Grid:
    """The 32-bit grid of a bias, whose step is that of the accumulator."""
    scales = tuple(float(activation.scales * np.float32(scale)) for scale in weight.scale)
    return Grid(scales, 32, axis=None if weight.axis is None else 0, weight=True)


def _names(traced: Traced) -> list[str]:
    return [value.name for value in traced.model.graph.outputs]


def _markers(editor: Editor, traced: Traced) -> list[tuple[onnx_ir.Node, str, Grid | None, torch.Tensor | None]]:
    nodes = [node for node in editor.graph if node.domain == DOMAIN]
    names = [node.attributes["grid"].as_string() for node in nodes]
    return [(node, name, *traced.marked[name]) for node, name in zip(nodes, names, strict=True)]


def _quantizers(editor: Editor, traced: Traced) -> list[tuple[onnx_ir.Node, str, Grid, torch.Tensor | None]]:
    return [(node, name, grid, values) for node, name, grid, values in _markers(editor, traced) if grid is not None]


def _remove_cuts(editor: Editor, traced: Traced) -> list[tuple[str, onnx_ir.Value, list[tuple[onnx_ir.Node, int]]]]:
    """Remove the markers of cuts, and return of each its name, its tensor and who read it."""
    cuts = []
    for node, name, grid, _ in _markers(editor, traced):
        if grid is None:
            value = node.inputs[0]
            cuts.append((name, value, [(use.node, use.idx) for use in node.outputs[0].uses()]))
            editor.replace(node, value)
    return cuts


def _integer_input(editor: Editor, value: onnx_ir.Value, grid: Grid) -> None:
    readers = list(value.uses())
    value.type = onnx_ir.TensorType(onnx_ir.DataType[grid.container.upper()])
    if not readers:
        return
    first = next(node for node in editor.graph if any(use.node is node for use in readers))
    scale, zero_point = editor.parameters(value.name, grid)
    whole = editor.insert(first, "DequantizeLinear", [value, scale, zero_point], f"{value.name}.dequantized")
    for use in readers:
        use.node.replace_input_with(use.idx, whole)


def _quantize(editor: Editor, node: onnx_ir.Node, name: str, grid: Grid) -> onnx_ir.Value:
    x = node.inputs[0]
    if grid.is_carried:
        x = editor.insert(node, "Clip", [x, *_ends(editor, name, grid)], f"{name}.clipped")
    scale, zero_point = editor.parameters(name, grid)
    integers = editor.insert(node, "QuantizeLinear", [x, scale, zero_point], f"{name}.quantized", grid.container)
    return editor.insert(node, "DequantizeLinear", [integers, scale, zero_point], f"{name}.dequantized")


def _ends(editor: Editor, name: str, grid: Grid) -> list[onnx_ir.Value]:
    steps = {"low": grid.low - grid.zero_point, "high": grid.high - grid.zero_point}
    return [editor.constant(f"{name}.{end}", np.float32(step) * grid.scales) for end, step in steps.items()]


def _weight(
    editor: Editor,
    node: onnx_ir.Node,
    name: str,
    grid: Grid,
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> onnx_ir.Value:
    integers = editor.constant(name, grid.quantize(values), grid.container)
    scale, zero_point = editor.parameters(name, grid)
    axis: dict[str, Any] = {} if grid.axis is None else {"axis": grid.axis}
    return editor.insert(node, "DequantizeLinear", [integers, scale, zero_point], f"{name}.dequantized", **axis)
