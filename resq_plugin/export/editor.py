"""Small edits of an ONNX graph in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from resq_plugin.export.grid import Grid

__all__ = ["Editor"]

_KEPT = "resq.kept"
_FOUR_BITS = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}


class Editor:
    """Edits one model; what it adds gets the names it is told, made unique."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self.names: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """The name itself the first time, then with a number."""
        count = self.names.get(name, 0)
        self.names[name] = count + 1
        return name if count == 0 else f"{name}#{count}"

    def constant(self, name: str, values: NDArray[Any], container: str = "float32") -> onnx_ir.Value:
        """The initializer of that name, made when it is not there."""
        if name not in self.graph.initializers:
            tensor = onnx_ir.tensor(values.astype(_FOUR_BITS.get(container, container)), name=name)
            kind, shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(values.shape)
            self.graph.register_initializer(onnx_ir.Value(name=name, const_value=tensor, shape=shape, type=kind))
        value: onnx_ir.Value = self.graph.initializers[name]
        return value

    def insert(
        self,
        before: onnx_ir.Node | None,
        op: str,
        inputs: Sequence[onnx_ir.Value],
        name: str,
        container: str = "float32",
        **attributes: Any,
    ) -> onnx_ir.Value:
        """Add a node (at the end without ``before``) and return its output, of the shape of its first input."""
        node = onnx_ir.node(op, inputs, attributes=attributes)
        node.name = node.outputs[0].name = self.unique(name)
        node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType[container.upper().replace("FLOAT32", "FLOAT")])
        node.outputs[0].shape = inputs[0].shape
        if before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(before, node)
        output: onnx_ir.Value = node.outputs[0]
        return output

    def keep(self, before: onnx_ir.Node, value: onnx_ir.Value, name: str) -> onnx_ir.Value:
        """A copy of a value under another name, which `finish` does not optimize away."""
        copy = self.insert(before, "Identity", [value], name)
        copy.producer().domain = _KEPT
        self.model.opset_imports[_KEPT] = 1
        return copy

    def parameters(self, name: str, grid: Grid) -> tuple[onnx_ir.Value, onnx_ir.Value]:
        """Scale and zero point of a grid."""
        zero_point = np.full(grid.scales.shape, grid.zero_point)
        return (
            self.constant(f"{name}.scale", grid.scales),
            self.constant(f"{name}.zero_point", zero_point, grid.container),
        )

    def replace(self, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
        """Let everybody read ``value`` instead of the only output of ``node``, and remove the node."""
        old = node.outputs[0]
        onnx_ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def separate_outputs(self, names: Iterable[str]) -> None:
        """Name the graph's outputs; one that is an input, a constant or another output gets a node of its own."""
        taken = {id(value) for value in (*self.graph.inputs, *self.graph.initializers.values())}
        for index, name in enumerate(names):
            value = self.graph.outputs[index]
            if id(value) in taken:
                copy = self.insert(None, "Identity", [value], name)
                copy.type = value.type or copy.type
                self.graph.outputs[index] = value = copy
            taken.add(id(value))
            value.name = name

    def finish(self) -> onnx_ir.Model:
        """Sort, compute what shapes decide, remove what nobody reads, infer all shapes, and return the model."""
        shapes = [value.shape for value in self.graph.outputs]
        self.graph.sort()
        passes.ShapeInferencePass()(self.model)
        optimizer.fold_constants(self.model, should_fold=lambda node: node.op_type == "ConstantOfShape" or None)
        for node in self.graph:
            if node.domain == _KEPT:
                node.domain = ""
        passes.RemoveUnusedNodesPass()(self.model)
        passes.RemoveUnusedOpsetsPass()(self.model)
        passes.ShapeInferencePass()(self.model)
        for value, shape in zip(self.graph.outputs, shapes, strict=True):
            value.shape = shape or value.shape  # inference cannot see through some operators
        return self.model
