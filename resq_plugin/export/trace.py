"""From a ResQ model to two ONNX graphs with markers where something is quantized.

An executor decides what a layer call means (`resq_plugin.method`), so tracing is running the model once with one that
takes memory from graph inputs and hands it out as graph outputs. Every quantizer becomes one node ``resq::Quantize``
that names its grid, whoever holds it; `resq_plugin.export.rewrite` turns those into what a file format has.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import onnx
import onnx_ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resq_plugin.conversion import evaluating
from resq_plugin.errors import ExportError
from resq_plugin.export.caches import CachePlan
from resq_plugin.export.editor import Editor
from resq_plugin.export.grid import Grid
from resq_plugin.export.numbers import LayerNumbers
from resq_plugin.method import (
    Call,
    CountingExecutor,
    ResidualLayer,
    choose,
    error_map,
    executing,
    fake_quantize,
    mix,
    share_error,
)

__all__ = ["DOMAIN", "Traced", "trace_keyframe", "trace_residual"]

DOMAIN = "resq"
OPSET = 21
"""The first with 4-bit integers. The tracer writes 20, from which 21 only differs in the types it allows."""

Marked = dict[str, tuple[Grid | None, Tensor | None]]
"""Name of a marker to its grid and, of a weight, its values; no grid marks a `Cut`."""


@dataclass(frozen=True)
class Traced:
    """A graph with markers.

    Attributes:
        model: the graph; inputs and outputs are named.
        marked: what each marker stands for.
        outputs: how many of the graph's outputs are the model's; caches follow.
    """

    model: onnx_ir.Model
    marked: Marked
    outputs: int


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, quantize: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ARG004
        return quantize(x)

    @staticmethod
    def symbolic(g: Any, x: Any, name: str, quantize: Callable[[Tensor], Tensor]) -> Any:  # noqa: ARG004
        return g.op(f"{DOMAIN}::Quantize", x, grid_s=name).setType(x.type())


class _Executor(CountingExecutor):
    """What both kinds of frame share: marking quantizers."""

    kind: str

    def __init__(self, numbers: Mapping[str, LayerNumbers], plan: CachePlan) -> None:
        super().__init__()
        self.numbers, self.plan = numbers, plan
        self.marked: Marked = {}
        self.memory: dict[str, Tensor] = {}

    def mark(self, x: Tensor, name: str, grid: Grid) -> Tensor:
        self.marked[name] = grid, None

        def quantize(x: Tensor) -> Tensor:
            return fake_quantize(x, torch.tensor(grid.scale[0]), grid.bits, signed=grid.signed)

        return cast(Tensor, _Mark.apply(x, name, quantize))

    def cut(self, tensor: Tensor, call: Call, side: str) -> Tensor:
        """Mark where `resq_plugin.export.parts` cuts the graph."""
        name = f"{call[0]}@{call[1]}.{side}"
        self.marked[name] = None, None
        return cast(Tensor, _Mark.apply(tensor, name, torch.clone))

    def weight(self, name: str, kind: str) -> Tensor:
        weight = self.numbers[name].weights[kind]
        marker = f"{name}.weight" if kind == "keyframe" else f"{name}.residual.weight"
        self.marked[marker] = weight.grid, weight.values
        return cast(Tensor, _Mark.apply(weight.values, marker, torch.clone))

    def keyframe(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """x̂ and z of a frame that is quantized on its own."""
        name, numbers = call[0], self.numbers[call[0]]
        x_hat = x if numbers.keyframe is None else self.mark(x, f"{name}.x", numbers.keyframe)
        x_cut = x if numbers.keyframe is None else self.cut(x_hat, call, "x")
        return x_hat, layer.linear(x_cut, self.weight(name, "keyframe"), numbers.bias, **options)


class _Keyframe(_Executor):
    """``frame -> outputs, caches``."""

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        x_hat, z = self.keyframe(layer, call, x, options)
        if call in self.plan.x:
            reference = x if layer.settings.config.reference == "float" else x_hat
            self.memory.setdefault(self.plan.x[call], reference.clone())
            self.memory.setdefault(self.plan.z[call], z.clone())
        return self.cut(z, call, "z")


class _Residual(_Executor):
    """``frame, caches -> outputs``, and the new caches of a running reference."""

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        if layer.settings.residual is None:
            return self.cut(self.keyframe(layer, call, x, options)[1], call, "z")
        if call not in self.plan.x:
            msg = f"layer {call[0]} is called more often in a residual frame than in a keyframe; exclude it."
            raise ExportError(msg)
        numbers, x_name, z_name = self.numbers[call[0]], self.plan.x[call], self.plan.z[call]
        reference, z_past = self.memory[x_name], self.memory[z_name]
        if not any(numbers.residual):  # 0 bits: δ̂ = 0, so that z_t = z_k, and nothing is read or multiplied
            return z_past.clone()
        delta_hat = self.quantize(layer, x - reference)
        delta_cut = self.cut(delta_hat, call, "x")
        z = layer.linear(delta_cut, self.weight(call[0], "residual"), None, **options) + z_past
        if layer.settings.config.reference == "running":
            self.memory[x_name], self.memory[z_name] = reference + delta_hat, z.clone()
        return self.cut(z, call, "z")

    def quantize(self, layer: ResidualLayer, delta: Tensor) -> Tensor:
        """δ̂; a pool in dense form: every quantizer runs and each pixel takes its own."""
        name, numbers = layer.settings.name, self.numbers[layer.settings.name]
        pool = [
            None if grid is None else self.mark(delta, f"{name}.delta.{index}", grid)
            for index, grid in enumerate(numbers.residual)
        ]
        if numbers.threshold is None:
            return cast(Tensor, pool[0])
        if layer.channel_dim == 1 and delta.dim() < numbers.weights["residual"].values.dim():
            msg = f"layer {name} reads {tuple(delta.shape)}; a dynamic pool is exported for (N, C, H, W) only."
            raise ExportError(msg)
        one, dim = torch.ones(()), layer.channel_dim
        policy = layer.settings.config.policy
        errors = [share_error(error_map(delta, quantized, one, dim), policy) for quantized in pool]
        return mix(pool, [one] * len(pool), choose(errors, numbers.threshold), dim)


class _Graph(nn.Module):
    """The model under an executor as one function of tensors."""

    def __init__(self, model: nn.Module, executor: _Executor, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.executor = model, executor
        self.inputs, self.outputs = inputs, outputs
        self.count = 0
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, frame: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        self.executor.memory = dict(zip(self.inputs, caches, strict=True))
        with executing(self.executor):
            results = [leaf for leaf in tree_leaves(self.model(frame)) if isinstance(leaf, Tensor)]
        values = *results, *(self.executor.memory[name] for name in self.outputs)
        self.count, self.shapes = len(results), [tuple(value.shape) for value in values]
        return values


def trace_keyframe(
    model: nn.Module,
    frame: Tensor,
    numbers: Mapping[str, LayerNumbers],
    plan: CachePlan,
    quantizers: Mapping[nn.Module, Grid] | None = None,
) -> Traced:
    """Trace the keyframe path for frames of the shape of ``frame`` (N, C, H, W).

    ``quantizers`` are modules outside ResQ layers that quantize what they are given, with their grids; they are
    marked, too.
    """
    names = [cache.name for cache in plan.caches if cache.source == "keyframe"]
    graph = _Graph(model, _Keyframe(numbers, plan), (), names)
    return _trace(graph, (frame,), (), names, quantizers or {})


def trace_residual(
    model: nn.Module,
    frame: Tensor,
    numbers: Mapping[str, LayerNumbers],
    plan: CachePlan,
    quantizers: Mapping[nn.Module, Grid] | None = None,
) -> Traced:
    """Trace the residual path; arguments as in `trace_keyframe`.

    New caches are outputs named ``new.<cache>`` where the reference is the running one.
    """
    config = next(module for module in model.modules() if isinstance(module, ResidualLayer)).settings.config
    names = [cache.name for cache in plan.caches]
    new = names if config.reference == "running" else []
    caches = tuple(torch.zeros(cache.shape) for cache in plan.caches)
    graph = _Graph(model, _Residual(numbers, plan), names, new)
    return _trace(graph, (frame, *caches), names, [f"new.{name}" for name in new], quantizers or {})


def _trace(
    graph: _Graph,
    arguments: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    quantizers: Mapping[nn.Module, Grid],
) -> Traced:
    buffer = io.BytesIO()
    with (
        evaluating(graph.model),
        torch.no_grad(),
        warnings.catch_warnings(),
        _marking(quantizers, graph.executor.marked),
    ):
        # The exporter announces its successor, which cannot trace models that look at the values of shapes.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            arguments,
            buffer,  # type: ignore[arg-type]  # files work, as its documentation says
            dynamo=False,
            opset_version=20,
            custom_opsets={DOMAIN: 1},
            input_names=["frame", *inputs],
            autograd_inlining=False,
        )
    model = onnx_ir.from_proto(onnx.load_model_from_string(buffer.getvalue()))
    model.opset_imports[""] = OPSET
    results = graph.count
    names = ["output"] if results == 1 else [f"output_{index}" for index in range(results)]
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    _restore_inputs(model, ("frame", *inputs), arguments)
    for value, shape in zip(model.graph.outputs, graph.shapes, strict=True):
        value.shape = onnx_ir.Shape(shape)  # some operators hide it from inference
    Editor(model).separate_outputs((*names, *outputs))
    return Traced(model, graph.executor.marked, results)


def _restore_inputs(model: onnx_ir.Model, names: Sequence[str], arguments: Sequence[Tensor]) -> None:
    """Declare what the tracer left out because nobody reads it: residuals of 0 bits look neither at it nor at x_k."""
    found = {value.name: value for value in model.graph.inputs}
    float32 = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    shapes = {name: onnx_ir.Shape(tuple(tensor.shape)) for name, tensor in zip(names, arguments, strict=True)}
    model.graph.inputs[:] = [
        found.get(name) or onnx_ir.Value(name=name, shape=shapes[name], type=float32) for name in names
    ]


@contextmanager
def _marking(quantizers: Mapping[nn.Module, Grid], marked: Marked) -> Iterator[None]:
    """Mark what these modules return inside; their own forward supplies the numbers."""
    for index, (module, grid) in enumerate(quantizers.items()):
        name = f"quantizer.{index}"
        marked[name] = grid, None
        compute = module.forward
        module.forward = lambda x, name=name, compute=compute: _Mark.apply(x, name, compute)
    try:
        yield
    finally:
        for module in quantizers:
            del module.forward
