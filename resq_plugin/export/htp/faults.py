"""What the HTP of onnxruntime-qnn 2.7 computes wrongly, written so that it computes it right.

A BatchNormalization behind an addition returns other integers than ONNX Runtime, by up to the whole range of 8 bits; a
depthwise 1x1 convolution computes the same function within 2 LSB. A Clip behind a convolution is dropped altogether
when one of its ends lies on an end of the grid of its output or beyond; a quarter of a step inside, which rounds to
the same integer, it stays. A layer returns nothing but zero points when a step of its accumulator is 256 or more steps
of its output, which is so where the output was zero on the whole clip that its range was found on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from resq_plugin.export.editor import Editor
from resq_plugin.export.grid import Grid
from resq_plugin.export.htp.layers import OPERATORS, find_steps

__all__ = ["coarser_grids", "limit_clips", "replace_norms"]

WEIGHT_BITS = 8
INSIDE = 0.25
"""In steps of a grid."""
FINEST = 1 / 128
"""Of a step of the accumulator; a finer output is zero on the HTP."""
FLAT = 1.001e-4
"""Range that ONNX Runtime's quantizer gives a tensor that was constant zero."""


def replace_norms(model: onnx_ir.Model) -> dict[str, Grid]:
    """Replace every BatchNormalization of (N, C, ...) by a depthwise convolution, in place.

    Returns:
        The grids of the new weights (C, 1, 1, ...), 8 bits with a scale per channel, by name.
    """
    editor = Editor(model)
    grids = {}
    for node in [node for node in editor.graph if node.op_type == "BatchNormalization"]:
        shape = node.inputs[0].shape
        parameters = [onnx_ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
        if shape is None or len(shape) < 3 or None in parameters:
            continue
        gain, offset = _affine(*(tensor.numpy() for tensor in parameters if tensor), epsilon=_epsilon(node))
        name = f"{node.outputs[0].name}.norm"
        weight = editor.constant(f"{name}.weight", gain.reshape(-1, *(1 for _ in shape[1:])))
        value = editor.insert(
            node, "Conv", [node.inputs[0], weight, editor.constant(f"{name}.bias", offset)], name, group=len(gain)
        )
        value.shape = node.outputs[0].shape
        own = node.outputs[0].name  # by which grids and graph outputs know it
        editor.replace(node, value)
        value.name = own
        high = 2 ** (WEIGHT_BITS - 1) - 1
        scales = np.maximum(np.abs(gain) / high, np.finfo(np.float32).tiny)
        grids[f"{name}.weight"] = Grid(tuple(scales.tolist()), WEIGHT_BITS, axis=0, weight=True)
    passes.RemoveUnusedNodesPass()(model)
    return grids


def limit_clips(path: Path) -> None:
    """Move the ends of every Clip in a QDQ graph to within the grid of its output, in place."""
    model = onnx_ir.load(path)
    editor = Editor(model)
    for node in [node for node in editor.graph if node.op_type == "Clip"]:
        reader = next((use.node for use in node.outputs[0].uses()), None)
        if reader is None or reader.op_type != "QuantizeLinear":
            continue
        scale, zero_point = (onnx_ir.convenience.get_const_tensor(value).numpy() for value in reader.inputs[1:])
        integers = np.iinfo(zero_point.dtype)
        ends = integers.min + INSIDE, integers.max - INSIDE
        grid = [(end - int(zero_point)) * float(scale) for end in ends]
        tensors = [value and onnx_ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
        given = [None if tensor is None else float(tensor.numpy()) for tensor in (*tensors, None, None)][:2]
        name = f"{node.outputs[0].name}.limited"
        within = (end if value is None else value for value, end in zip(given, grid, strict=True))
        limited = [min(max(grid[0], value), grid[1]) for value in within]
        constants = [
            editor.constant(f"{name}.{side}", np.array(value))
            for side, value in zip(("low", "high"), limited, strict=True)
        ]
        editor.replace(node, editor.insert(node, "Clip", [node.inputs[0], *constants], name))
    passes.RemoveUnusedNodesPass()(model)
    onnx_ir.save(model, path)


def coarser_grids(path: Path) -> dict[str, Grid]:
    """Find the layers of a QDQ graph whose output is too fine, by the name of the output, with a grid that is not.

    One that was zero on the whole clip gets the steps of its accumulator.
    """
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}

    def scale(node: onnx.NodeProto) -> NDArray[np.float32]:
        return np.asarray(onnx.numpy_helper.to_array(constants[node.input[1]]), np.float32)

    grids = {}
    for step in find_steps(model):
        sources = [producers.get(name) for name in step.node.input[:2]]
        if step.node.op_type not in OPERATORS or any(s is None or s.op_type != "DequantizeLinear" for s in sources):
            continue
        accumulator = float(scale(sources[0])) * scale(sources[1])
        found = float(scale(step.quantizer))
        zero_point = onnx.numpy_helper.to_array(constants[step.quantizer.input[2]])
        bits = 8 * zero_point.dtype.itemsize
        is_flat = found * (2**bits - 1) <= FLAT
        least = accumulator.max() * (1 if is_flat else FINEST)
        if found < least:
            zero = 2 ** (bits - 1) if is_flat else round(int(zero_point) * found / least)  # the lower end stays
            grids[step.tensor] = Grid((float(least),), bits, signed=False, zero_point=zero)
    return grids


def _epsilon(node: onnx_ir.Node) -> float:
    return node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5


def _affine(
    gamma: NDArray[np.float32],
    beta: NDArray[np.float32],
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
    *,
    epsilon: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factor and summand of each channel."""
    gain = (gamma / np.sqrt(variance + np.float32(epsilon))).astype(np.float32)
    return gain, (beta - mean * gain).astype(np.float32)
