"""Giving a module another class and its own back, also when somebody has derived a class of it in between.

`torch.nn.utils.parametrize` does so: ``ParametrizedConv2d`` is made for one module, with the parametrized tensors as
properties. When the class below it goes, the one on top has to stay, or the module would lose its weight.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from resq_plugin.errors import ConversionError

__all__ = ["swap_class", "swap_class_back"]

_ORIGINAL, _SWAPPED = "_original", "_swapped"
_MADE_BY_PYTHON = ("__dict__", "__weakref__")


def swap_class(module: nn.Module, kind: type[Any]) -> None:
    """Give a module the class ``kind`` and note the one it had."""
    original = module.__dict__.get(_ORIGINAL, type(module))
    module.__class__ = kind
    module.__dict__.update({_ORIGINAL: original, _SWAPPED: kind})


def swap_class_back(module: nn.Module) -> None:
    """Undo `swap_class`; a class that was derived in between is derived of the original one.

    Raises:
        ConversionError: the class is another one altogether.
    """
    module.__class__ = _rebased(type(module), module.__dict__[_SWAPPED], module.__dict__[_ORIGINAL])
    del module.__dict__[_ORIGINAL], module.__dict__[_SWAPPED]


def _rebased(kind: type[Any], swapped: type[Any], original: type[Any]) -> type[Any]:
    if kind is swapped:
        return original
    if swapped not in kind.__mro__:
        msg = (
            f"a layer is a {kind.__name__} now, which is no {swapped.__name__}; undo what changed its class before "
            "resq_plugin.revert(model)."
        )
        raise ConversionError(msg)
    bases = tuple(_rebased(base, swapped, original) if swapped in base.__mro__ else base for base in kind.__bases__)
    content = {key: value for key, value in vars(kind).items() if key not in _MADE_BY_PYTHON}
    make = cast(Any, type(kind))
    made: type[Any] = make(kind.__name__.replace(swapped.__name__, original.__name__), bases, content)
    return made
