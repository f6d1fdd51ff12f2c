"""Changing the modules of a model in place, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["all_or_nothing"]


class _Remembered:
    """Class and attributes of one module; containers such as those of hooks stay the very objects."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module)
        self.attributes = dict(vars(module))
        containers = (value for value in self.attributes.values() if isinstance(value, (dict, list, set)))
        self.contents = [(container, container.copy()) for container in containers]

    def restore(self) -> None:
        self.module.__class__ = self.kind
        now = vars(self.module)
        now.clear()
        now.update(self.attributes)
        for container, before in self.contents:
            container.clear()
            _refill(container, before)


def _refill(container: Any, before: Any) -> None:
    if isinstance(container, list):
        container.extend(before)
    else:
        container.update(before)


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Give every module of a model its class and attributes back when what is done inside fails, whatever fails."""
    before = [_Remembered(module) for module in model.modules()]
    try:
        yield
    except BaseException:
        for remembered in before:
            remembered.restore()
        raise
