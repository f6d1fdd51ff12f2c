"""One run of a model that computes nothing: which layers are called, with how many elements, and what else happens.

The model runs on meta tensors, which have shapes and no data, and in float also when it is converted. Where an
operator has no meta kernel the run is repeated for real. Either way the model is left as it was.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resq_plugin.errors import ConfigError, ResQError
from resq_plugin.method import TRANSPOSED, count_macs, cure_of, executing

__all__ = ["COUNTED_LAYERS", "DryRun", "LayerCall", "UncountedOps", "dry_run"]

logger = logging.getLogger(__name__)

COUNTED_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
"""The layers whose multiply-accumulates are counted, subclasses included."""

# Operators beside views that only make or name memory; `_unsafe_view` is a view by another name.
_ALLOCATIONS = {"_unsafe_view", "empty_permuted", "empty_strided", "new_empty_strided", "scalar_tensor"} | {
    pattern.format(fill) for fill in ("empty", "zeros", "ones", "full") for pattern in ("{}", "{}_like", "new_{}")
}


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer.

    Attributes:
        name: qualified name of the layer in the model.
        layer: the layer.
        macs: multiply-accumulates of the call.
        input_shape: of what it reads.
        output_shape: of what it returns.
        source: number of the tensor that it reads; layers that read the same one, unchanged, have the same number.
        result: number of the tensor that it returns.
    """

    name: str
    layer: nn.Module
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    source: int
    result: int

    @property
    def inputs(self) -> int:
        """Elements of its input."""
        return math.prod(self.input_shape)

    @property
    def outputs(self) -> int:
        """Elements of its output."""
        return math.prod(self.output_shape)


@dataclass(frozen=True)
class UncountedOps:
    """An operator that runs outside every counted layer.

    Attributes:
        module: qualified name of the innermost module that is running, empty for the model itself.
        operator: e.g. ``aten.avg_pool2d``.
        calls: how often.
    """

    module: str
    operator: str
    calls: int

    def __str__(self) -> str:
        return f"{self.module or '(model)'}: {self.operator} x{self.calls}"


@dataclass(frozen=True)
class DryRun:
    """What one run of a model does, in the order of the first occurrence.

    Attributes:
        calls: calls of the layers that are counted.
        uncounted: everything else that computes or moves data.
    """

    calls: tuple[LayerCall, ...]
    uncounted: tuple[UncountedOps, ...]


def dry_run(model: nn.Module, shape: Sequence[int], arguments: Sequence[Any] = ()) -> DryRun:
    """Observe one run of the model in eval mode.

    Args:
        model: any model whose first argument is the frame; converted or not, calibrated or not.
        shape: of the input, normally (N, C, H, W).
        arguments: of the model behind the frame.

    Raises:
        ConfigError: the shape is none.
        ResQError: the model fails on an input of that shape.
    """
    given: object = shape
    if isinstance(given, Tensor):
        msg = f"shape is a tensor; write the shape of a frame: measure_cost(model, {tuple(given.shape)})."
        raise ConfigError(msg)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        msg = f"shape={tuple(shape)!r} must be whole numbers above 0, e.g. (1, 3, 1024, 2048) for (N, C, H, W)."
        raise ConfigError(msg)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.get_default_dtype())
    meta = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}
    try:
        return _observe(model, meta, torch.empty(tuple(shape), dtype=dtype, device="meta"), *arguments)
    except Exception as error:
        # Operators without a meta kernel, and code that reads values, fail in too many ways to tell them apart.
        logger.info("%s cannot run without data (%s); it is run for real.", type(model).__name__, error)
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    # Copies, because a model may write its buffers also in eval mode.
    real = {name: t.detach().clone() for name, t in tensors.items()}
    try:
        return _observe(model, real, torch.zeros(tuple(shape), dtype=dtype, device=device), *arguments)
    except Exception as error:
        cure = cure_of(
            torch.zeros(tuple(shape), dtype=dtype, device=device), lambda x: _observe(model, real, x), dtype
        )
        told = str(error).rstrip(".") if cure else error
        msg = f"{type(model).__name__} fails on an input of shape {tuple(shape)}: {type(error).__name__}: {told}{cure}"
        raise ResQError(msg) from error


def _observe(model: nn.Module, tensors: Mapping[str, Tensor], frame: Tensor, *arguments: Any) -> DryRun:
    recorder = _Recorder()
    with _unchanged(model), executing(_plain), torch.no_grad(), recorder.watching(model), recorder:
        torch.func.functional_call(model, dict(tensors), (frame, *arguments))
    uncounted = tuple(UncountedOps(module, op, calls) for (module, op), calls in recorder.operators.items())
    return DryRun(tuple(recorder.calls), uncounted)


def _plain(layer: Any, x: Tensor, **options: Any) -> Tensor:
    """Run a converted layer as the layer it was: the shapes are the same, and scales and caches stay untouched."""
    kinds: tuple[Any, ...] = COUNTED_LAYERS
    plain = next((kind.forward for kind in kinds if isinstance(layer, kind)), type(layer).dense)
    z: Tensor = plain(layer, x, **options)
    return z


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside; afterwards its attributes are those of before."""
    before = [
        (module, vars(module).copy(), module._parameters.copy(), module._buffers.copy()) for module in model.modules()
    ]
    try:
        for module, *_ in before:
            # Not model.eval(), which toolkits override to freeze parameters.
            module.training = False
        yield
    finally:
        for module, attributes, parameters, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            # `functional_call` puts those of a module that has two names back only under one.
            module._parameters.update(parameters)
            module._buffers.update(buffers)


class _Recorder(TorchDispatchMode):
    """Sees the modules by hooks and the operators by dispatch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[LayerCall] = []
        self.operators: Counter[tuple[str, str]] = Counter()
        self._tensors: dict[int, tuple[ref[Tensor], int, int]] = {}
        self._numbers = itertools.count()
        self._running: list[tuple[str, bool]] = [("", False)]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Record the calls of all modules of the model inside."""
        handles = []
        try:
            for name, module in model.named_modules():
                enter, leave = self._hooks(name, isinstance(module, COUNTED_LAYERS))
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str, counted: bool) -> tuple[Any, Any]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            # What a counted layer calls in turn is part of it.
            self._running.append((name, counted or self._running[-1][1]))

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if counted and not self._running[-2][1]:
                x = args[0] if args else next(iter(kwargs.values()))
                z = output if isinstance(output, Tensor) else output[0]
                shapes = tuple(x.shape), tuple(z.shape)
                numbers = self._number(x), self._number(z)
                self.calls.append(LayerCall(name, module, count_macs(module, x, z), *shapes, *numbers))
            self._running.pop()

        return enter, leave

    def _number(self, tensor: Tensor) -> int:
        """Number of a tensor: another one once it was written to."""
        version = 0 if tensor.is_inference() else tensor._version
        known = self._tensors.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != version:
            known = ref(tensor), version, next(self._numbers)
            self._tensors[id(tensor)] = known
        return known[2]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, inside_layer = self._running[-1]
        if not inside_layer and not _is_bookkeeping(func):
            self.operators[name, func._schema.name.replace("::", ".")] += 1
        return func(*args, **(kwargs or {}))


def _is_bookkeeping(func: Any) -> bool:
    name = func._schema.name.partition("::")[2]
    return func.is_view or torch.Tag.inplace_view in func.tags or name in _ALLOCATIONS or name.startswith("sym_")
