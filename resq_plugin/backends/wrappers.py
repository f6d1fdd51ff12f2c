"""Subclasses of `torch.nn` layers that compute the same, such as mmcv's wrappers around empty inputs.

A subclass may compute something else, so its layers stay in float unless somebody vouches for it through the
entry-point group ``resq_plugin.wrappers``. An entry has the name of the package that the classes come from and loads
to a tuple of them. It is loaded when a model holds a class of that package, so nothing new is imported.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from torch import nn

__all__ = ["GROUP", "torch_class"]

GROUP = "resq_plugin.wrappers"


def torch_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the `torch.nn` class that computes what ``kind`` computes, which is ``kind`` unless it is a wrapper."""
    package = kind.__module__.partition(".")[0]
    if package == "torch" or kind not in _wrappers(package):
        return kind
    return next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn."))


@cache
def _wrappers(package: str) -> frozenset[type[nn.Module]]:
    return frozenset(kind for entry in entry_points(group=GROUP, name=package) for kind in entry.load())
