"""What was told of a model already: the same warning at every setting of a sweep helps nobody."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["is_news"]

_told: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def is_news(model: nn.Module, subject: str) -> bool:
    """Whether nobody asked this of the model before.

    Args:
        model: of whom something is to be told.
        subject: what, e.g. ``pixels``.
    """
    told = _told.setdefault(model, set())
    is_new = subject not in told
    told.add(subject)
    return is_new
