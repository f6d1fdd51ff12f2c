"""A float graph with our encodings to a graph in which everything is integers, as the HTP runs it.

Ours are the grids of layer inputs, residuals and weights; ONNX Runtime's quantizer finds those of all other tensors
(additions, outputs, memory) on a clip, with the settings it has for this target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray

from resq_plugin.export.editor import Editor
from resq_plugin.export.grid import Grid
from resq_plugin.extras import need
from resq_plugin.logs import only_errors

__all__ = ["quantize_graph"]

Feeds = Sequence[Mapping[str, NDArray[Any]]]


def quantize_graph(
    source: onnx_ir.Model, target: Path, activations: Mapping[str, Grid], weights: Mapping[str, Grid], feeds: Feeds
) -> None:
    """Quantize every tensor of a graph.

    Args:
        source: float graph.
        target: QDQ graph to write.
        activations: grids of tensors that are given.
        weights: grids of initializers.
        feeds: inputs of the float graph on which the other grids are found.
    """
    need("onnxruntime", "htp")
    from onnxruntime.quantization import QuantType, quantize  # noqa: PLC0415
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config  # noqa: PLC0415

    model = onnx_ir.to_proto(source)
    graph = model.graph
    known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    overrides = {name: [_activation(grid)] for name, grid in activations.items() if name in known}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.output[0] in overrides:  # a copy for a further output: no new rounding
            overrides.setdefault(node.input[0], overrides[node.output[0]])
    constants = {tensor.name for tensor in graph.initializer}
    overrides |= {name: _weight(_by_channel(model, name, weights[name])) for name in weights.keys() & constants}
    config = get_qnn_qdq_config(
        model,
        _reader(feeds),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        init_overrides=overrides,
        keep_removable_activations=True,  # a ReLU before a signed grid does something
    )
    with only_errors():  # without the advice to pre-process, which the tracer has done
        quantize(model, str(target), config)


def _activation(grid: Grid) -> dict[str, Any]:
    """The grid in unsigned 8-bit integers, as the HTP takes activations: 128 stands for 0 of a signed one.

    A grid of fewer bits keeps its scale and uses the middle of the integers; the graph clips to its ends.
    """
    from onnxruntime.quantization import QuantType  # noqa: PLC0415

    zero_point = grid.zero_point + (2 ** (grid.container_bits - 1) if grid.signed else 0)
    unsigned = {8: (QuantType.QUInt8, np.uint8), 16: (QuantType.QUInt16, np.uint16)}
    kind, dtype = unsigned[grid.container_bits]
    return {"quant_type": kind, "scale": grid.scales, "zero_point": np.array(zero_point, dtype)}


def _by_channel(model: onnx.ModelProto, name: str, grid: Grid) -> Grid:
    """The same grid, said per channel where the HTP has 4-bit weights of convolutions in no other form."""
    axes = {"Conv": 0, "ConvTranspose": 1}
    axis = next((axes.get(node.op_type) for node in model.graph.node if name in node.input), None)
    if grid.axis is not None or grid.container_bits != 4 or axis is None:
        return grid
    shape = next(tensor.dims for tensor in model.graph.initializer if tensor.name == name)
    return dataclasses.replace(grid, scale=grid.scale * shape[axis], axis=axis)


def _weight(grid: Grid) -> list[dict[str, Any]]:
    from onnxruntime.quantization import QuantType  # noqa: PLC0415

    kind = {4: QuantType.QInt4, 8: QuantType.QInt8, 16: QuantType.QInt16}[grid.container_bits]
    common: dict[str, Any] = {"quant_type": kind, "zero_point": np.array(0, np.int8)}
    if grid.axis is not None:
        common["axis"] = grid.axis
    return [{**common, "scale": np.array(scale, np.float32)} for scale in grid.scale]


def _reader(feeds: Feeds) -> Any:
    from onnxruntime.quantization import CalibrationDataReader  # noqa: PLC0415

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(feeds)

        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(self.rest, None)

    return Reader()


def integer_memory(
    path: Path, inputs: Sequence[str], outputs: Sequence[str], known: Mapping[str, Grid]
) -> dict[str, Grid]:
    """Let a QDQ graph take and return these tensors as integers, in place, and return their grids.

    Those of ``known`` are used where the quantizer left an input in float, which it does in front of a ReLU.
    """
    model = onnx_ir.load(path)
    editor = Editor(model)
    grids = {}
    for value in model.graph.inputs:
        if value.name not in inputs:
            continue
        readers = [use.node for use in value.uses()]
        if [node.op_type for node in readers] == ["QuantizeLinear"]:
            grids[value.name] = _grid(readers[0])
            value.type = onnx_ir.TensorType(readers[0].outputs[0].dtype or readers[0].inputs[2].dtype)
            editor.replace(readers[0], value)
        else:
            grids[value.name] = _dequantized(editor, value, _activation(known[value.name]))
    for index, value in enumerate(model.graph.outputs):
        if value.name in outputs:
            integers = value.producer().inputs[0]
            grids[value.name] = _grid(value.producer())
            integers.shape = value.shape
            integers.type = onnx_ir.TensorType(value.producer().inputs[2].dtype)
            name, value.name = value.name, f"{value.name}.dequantized"
            model.graph.outputs[index] = integers
            integers.name = name
    onnx_ir.save(editor.finish(), path)
    return grids


def _dequantized(editor: Editor, value: onnx_ir.Value, form: Mapping[str, Any]) -> Grid:
    """Make an input integers of that form, and its readers read what they stand for."""
    zero_point = form["zero_point"]
    grid = Grid((float(form["scale"]),), 8 * zero_point.dtype.itemsize, signed=False, zero_point=int(zero_point))
    uses = list(value.uses())
    value.type = onnx_ir.TensorType(onnx_ir.DataType[grid.container.upper()])
    first = next(node for node in editor.graph if any(use.node is node for use in uses))
    parameters = editor.parameters(value.name, grid)
    whole = editor.insert(first, "DequantizeLinear", [value, *parameters], f"{value.name}.dequantized")
    for use in uses:
        use.node.replace_input_with(use.idx, whole)
    return grid


def _grid(node: onnx_ir.Node) -> Grid:
    scale, zero_point = (node.inputs[index].const_value.numpy() for index in (1, 2))
    bits = 8 * zero_point.dtype.itemsize
    return Grid((float(scale),), bits, signed=zero_point.dtype.kind == "i", zero_point=int(zero_point))
