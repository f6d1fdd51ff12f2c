"""Every layer of a QDQ graph on its own, on the HTP and on the CPU, with the integers it sees in the whole graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resq_plugin.export.htp.session import htp_session
from resq_plugin.export.sessions import integer_session

__all__ = ["OPERATORS", "LayerDifference", "Unit", "compare_layers", "find_units"]

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerDifference:
    """One layer on the HTP against the CPU.

    Attributes:
        graph: ``keyframe`` or ``residual``.
        weight: name of its weight.
        operator: ONNX operator.
        lsb: largest difference of its output integers.
        share: share of output integers that differ.
    """

    graph: str
    weight: str
    operator: str
    lsb: int
    share: float


@dataclass(frozen=True)
class Unit:
    """A linear operator with what quantizes its inputs and its output, and an activation between.

    Attributes:
        weight: name of its weight.
        nodes: in order.
        source: name of the integers that it reads.
        target: name of the integers that it returns.
    """

    weight: str
    nodes: tuple[onnx.NodeProto, ...]
    source: str
    target: str


def find_units(model: onnx.ModelProto) -> Iterator[Unit]:
    """Find the linear operators of a QDQ graph."""
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        sources = [producers.get(name) for name in node.input]
        if node.op_type not in OPERATORS or any(s is None or s.op_type != "DequantizeLinear" for s in sources):
            continue
        end = [node]
        while end[-1].op_type != "QuantizeLinear" and len(readers.get(end[-1].output[0], ())) == 1:
            end.append(readers[end[-1].output[0]][0])
        if len(end) <= 3 and end[-1].op_type == "QuantizeLinear":
            dequantizers = tuple(source for source in sources if source is not None)
            weight = dequantizers[1].input[0].removesuffix("_quantized")
            yield Unit(weight, (*dequantizers, *end), dequantizers[0].input[0], end[-1].output[0])


def compare_layers(path: Path, arch: int, soc: int | None, feed: Mapping[str, Array]) -> list[LayerDifference]:
    """Run every layer of a graph alone on both.

    Args:
        path: QDQ graph.
        arch: as in `htp_session`.
        soc: as in `htp_session`.
        feed: inputs of the graph.
    """
    model = onnx.load(path)
    units = list(find_units(model))
    inputs = _intermediate(model, sorted({unit.source for unit in units}), feed)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for unit in units:
            single = Path(folder) / "layer.onnx"
            onnx.save(_alone(model, unit, inputs[unit.source]), single)
            one = {unit.source: inputs[unit.source]}
            (ours,) = htp_session(single, arch, soc).run(None, one)
            (expected,) = integer_session(single).run(None, one)
            steps = np.abs(ours.astype(np.int32) - expected.astype(np.int32))
            operator = next(node.op_type for node in unit.nodes if node.op_type in OPERATORS)
            difference = LayerDifference(path.stem, unit.weight, operator, int(steps.max()), float((steps > 0).mean()))
            found.append(difference)
    return found


def _intermediate(model: onnx.ModelProto, names: Sequence[str], feed: Mapping[str, Array]) -> dict[str, Array]:
    """Values of tensors inside a graph."""
    given = {name: feed[name] for name in names if name in feed}
    inner = [name for name in names if name not in given]
    if not inner:
        return given
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    del open_model.graph.output[:]
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    values = integer_session(open_model.SerializeToString()).run(inner, dict(feed))
    return given | dict(zip(inner, values, strict=True))


def _alone(model: onnx.ModelProto, unit: Unit, source: Array) -> onnx.ModelProto:
    needed = {name for node in unit.nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    types = {tensor.name: tensor.data_type for tensor in constants}
    integers = types[unit.nodes[-1].input[2]]
    graph = onnx.helper.make_graph(
        list(unit.nodes),
        "layer",
        [onnx.helper.make_tensor_value_info(unit.source, types[unit.nodes[0].input[2]], source.shape)],
        [onnx.helper.make_tensor_value_info(unit.target, integers, None)],
        constants,
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return onnx.shape_inference.infer_shapes(alone)
