"""Every operator inside a QDQ graph on the HTP against the CPU, both on the integers that the HTP computed before it.

The graph is compiled once more with all its inner integers handed out, which shows what each operator did in the whole
graph; the CPU computes each of them anew from those before it. So an operator is compared on its own, with no error of
its predecessors, and the numbers do not grow through a deep net.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resq_plugin.export.htp.session import htp_session
from resq_plugin.export.sessions import integer_session

__all__ = ["LAYER_LIMIT", "OPERATORS", "LayerDifference", "Step", "compare_layers", "find_steps"]

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MIXING = ("Add", "Sub", "Concat")
LAYER_LIMIT = 2
"""LSB that an operator may differ from ONNX Runtime on the CPU on the same integers."""
MOST = 16
"""LSB that it may differ where one step of what it computes with is more than one of its output."""
GIVEN = ".given"

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerDifference:
    """One operator on the HTP against the CPU.

    Attributes:
        graph: ``keyframe`` or ``residual``.
        weight: name of its weight, or of the tensor it returns if it has none.
        operator: ONNX operator.
        lsb: largest difference of its output integers.
        share: share of output integers that differ.
        limit: LSB that it may differ: 2, or one step of what it computes with where that is coarser than its output,
            up to 16. The HTP rounds a bias towards 0 in steps of the accumulator, and what it adds, subtracts or
            concatenates in steps of the inputs.
    """

    graph: str
    weight: str
    operator: str
    lsb: int
    share: float
    limit: int = LAYER_LIMIT

    @property
    def passed(self) -> bool:
        """Whether it is within its limit."""
        return self.lsb <= self.limit


@dataclass(frozen=True)
class Step:
    """An operator whose result is quantized, an activation that is not quantized apart included.

    Attributes:
        node: the operator.
        quantizer: what quantizes its result.
        weight: name of its weight; None if it has none.
    """

    node: onnx.NodeProto
    quantizer: onnx.NodeProto
    weight: str | None

    @property
    def tensor(self) -> str:
        """Name of what is quantized, as the float graph knows it."""
        return str(self.quantizer.input[1]).removesuffix("_scale")


def find_steps(model: onnx.ModelProto) -> Iterator[Step]:
    """Find all that computes integers in a QDQ graph."""
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    for quantizer in model.graph.node:
        if quantizer.op_type != "QuantizeLinear":
            continue
        first = producers.get(quantizer.input[0], quantizer)  # an input of the graph is quantized by itself
        while first.op_type not in ("DequantizeLinear", *OPERATORS) and first.input[0] in producers:
            before = producers[first.input[0]]
            if before.op_type == "DequantizeLinear":
                break
            first = before
        weight = None
        if first.op_type in OPERATORS:
            source = producers.get(first.input[1])
            name = first.input[1] if source is None else source.input[0]
            weight = name.removesuffix("_quantized") if name in constants else None
        yield Step(first, quantizer, weight)


def compare_layers(
    path: Path, arch: int, soc: int | None, feed: Mapping[str, Array]
) -> tuple[list[LayerDifference], dict[str, Array]]:
    """Compare every operator of a graph.

    Args:
        path: QDQ graph.
        arch: as in `htp_session`.
        soc: as in `htp_session`.
        feed: inputs of the graph.

    Returns:
        Every operator, and what the graph's own outputs were when the inner integers were handed out: the same as
        otherwise, or the comparison is of another program.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    own = [value.name for value in model.graph.output]
    outputs = {value.name for value in model.graph.output}
    shapes = {value.name: value for value in model.graph.value_info}
    steps = [
        step
        for step in find_steps(model)
        if step.quantizer.output[0] in outputs or step.node.op_type != "DequantizeLinear"
    ]
    names = [step.quantizer.output[0] for step in steps]
    model.graph.output.extend(shapes[name] for name in names if name not in outputs)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / path.name)
        every = list(dict.fromkeys((*names, *own)))
        found = dict(zip(every, htp_session(Path(folder) / path.name, arch, soc).run(every, dict(feed)), strict=True))
    given = {f"{name}{GIVEN}": found[name] for name in names}
    expected = integer_session(_cut(model, names)).run(names, {**feed, **given})
    differences = []
    for step, name, theirs in zip(steps, names, expected, strict=True):
        apart = np.abs(found[name].astype(np.int32) - theirs.astype(np.int32))
        known = step.weight or step.tensor
        share = float((apart > 0).mean())
        limit = _limit(model, step)
        differences.append(LayerDifference(path.stem, known, step.node.op_type, int(apart.max()), share, limit))
    return differences, {name: found[name] for name in own}


def _limit(model: onnx.ModelProto, step: Step) -> int:
    """LSB that an operator may differ by its grids."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    sources = [producers.get(name) for name in step.node.input]
    dequantizers = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
    if len(dequantizers) < len(sources):
        return LAYER_LIMIT

    def values(name: str) -> NDArray[np.float64]:
        return np.atleast_1d(onnx.numpy_helper.to_array(constants[name]).astype(np.float64))

    steps = [values(source.input[1]) for source in dequantizers]
    if step.node.op_type in OPERATORS and len(dequantizers) == 3:
        coarsest = float((steps[0] * steps[1] * (values(dequantizers[2].input[0]) != 0)).max())
    elif step.node.op_type in MIXING:
        coarsest = max(float(scale.max()) for scale in steps)
    else:
        return LAYER_LIMIT
    return max(LAYER_LIMIT, min(MOST, math.ceil(coarsest / float(values(step.quantizer.input[1])[0])) + 1))


def _cut(model: onnx.ModelProto, names: list[str]) -> bytes:
    """The same graph in which everybody reads these integers from graph inputs."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    values = {value.name: value for value in model.graph.output}
    for node in cut.graph.node:
        for index, name in enumerate(node.input):
            if name in values and name in names:
                node.input[index] = f"{name}{GIVEN}"
    for name in names:
        value = onnx.ValueInfoProto()
        value.CopyFrom(values[name])
        value.name = f"{name}{GIVEN}"
        cut.graph.input.append(value)
    text: bytes = cut.SerializeToString()
    return text
