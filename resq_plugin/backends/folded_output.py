"""What a layer with a folded batch norm returns: a tensor that only this batch norm may read.

Its values are those behind the batch norm. Code that reads the layer's raw output in another way, in training only, in
later frames or in place of the batch norm, would take them for something else; here it meets an error instead.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._pytree import tree_iter

from resq_plugin.errors import FoldingError

__all__ = ["FoldedOutput", "hand_over", "take"]

_GETTERS_OF_VALUES = {"data", "grad", "T", "H", "mT", "mH", "real", "imag"}
_DESCRIPTIONS = {
    *("size", "dim", "stride", "numel", "nelement", "element_size", "storage_offset", "is_contiguous", "get_device"),
    *("is_floating_point", "is_complex", "is_signed", "is_inference", "data_ptr", "untyped_storage", "is_same_size"),
    *("__len__", "__hash__", "dim_order", "ndimension", "has_names"),
}


class FoldedOutput(Tensor):
    """The output of a layer on its way to the batch norm that is folded into it.

    Attributes:
        owner: name of the layer.
        reader: the batch norm; None once it has taken the output.
    """

    owner: str
    reader: nn.Module | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Describe the tensor, and raise where its values are asked for."""
        if _is_description(func):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        output = next(value for value in tree_iter((args, kwargs)) if isinstance(value, FoldedOutput))
        if torch.compiler.is_compiling():
            msg = (
                f"layer {output.owner} computes with the batch norm behind it folded in, and is not compiled, while "
                "what reads its output is; compile both or none of them, best the whole model: torch.compile(model)."
            )
            raise FoldingError(msg)
        msg = _wrong_reader(output.owner, f"{getattr(func, '__name__', func)}(...) reads its output")
        raise FoldingError(msg)

    def __repr__(self) -> str:  # type: ignore[override]
        """Show the shape; the values are for the batch norm."""
        return f"FoldedOutput({self.owner}, {tuple(self.shape)})"


def _is_description(func: Any) -> bool:
    if func in (torch.autograd.backward, torch.autograd.grad):  # of checkpointing that ends at this layer
        return True
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _GETTERS_OF_VALUES
    return name in _DESCRIPTIONS


def _wrong_reader(owner: str, found: str) -> str:
    return (
        f"layer {owner} computes with the batch norm behind it folded in, as nothing else read its output when it was "
        f"folded; now {found}. Write exclude=({owner!r},), which keeps this layer and its batch norm in float, or "
        "convert again and fold with frames that show it: calibrate(model, clips, run=...)."
    )


def hand_over(z: Any, layer: nn.Module, norm: nn.Module, owner: str) -> Any:
    """Return the output of ``layer`` so that only ``norm`` can read it."""
    if not isinstance(z, Tensor) or not _is_followed(layer, norm):
        return z
    output = z.as_subclass(FoldedOutput)
    output.owner, output.reader = owner, norm
    return output


def take(z: Any, layer: nn.Module, norm: nn.Module, owner: str) -> Any:
    """Return what `hand_over` wrapped.

    Raises:
        FoldingError: ``z`` is not the output of ``layer``, or was read before.
    """
    if not isinstance(z, FoldedOutput):
        if isinstance(z, Tensor) and _is_followed(layer, norm):
            found = f"this batch norm is called with another tensor, {tuple(z.shape)}"
            msg = _wrong_reader(owner, f"{found}, or is not compiled while {owner} is")
            raise FoldingError(msg)
        is_view = isinstance(z, Tensor) and z.requires_grad and z._is_view()  # a backward hook makes one
        return _own(z) if is_view else z
    if z.reader is not norm:
        other = "this batch norm reads it twice" if z.reader is None else "another batch norm reads it"
        msg = _wrong_reader(z.owner, other)
        raise FoldingError(msg)
    z.reader = None
    with torch._C.DisableTorchFunctionSubclass():
        return _own(z)


def _own(z: Tensor) -> Tensor:
    """The same memory as a tensor that autograd takes for no view, so that what follows may work in place on it."""
    own: Tensor = torch.ops.aten._unsafe_view(z, z.shape)
    return own


def _is_followed(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether the class of a tensor survives between the two: not for a compiler, a tracer or backward hooks."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if layer._compiled_call_impl or norm._compiled_call_impl or _is_within_compiled_call():
        return False
    hooks = layer._backward_hooks or layer._backward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
    return not (hooks or nn_module._global_backward_hooks or nn_module._global_backward_pre_hooks)


def _is_within_compiled_call() -> bool:
    """Whether a call of `torch.compile` runs this in eager mode, as it does behind graph breaks and past its limits.

    It may compile the next module and not this one, and takes no tensors of our class.
    """
    if "torch._dynamo.eval_frame" not in sys.modules:
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_qualname.startswith("_TorchDynamoContext.__call__."):
            return True
    return False
