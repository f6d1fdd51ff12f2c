"""Telling the calls of one layer in a frame apart, because layers may be reused in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from resq_plugin.method.layers import ResidualLayer

__all__ = ["Call", "CountingExecutor"]

Call = tuple[str, int]
"""One call of one layer in a frame: its name and the number of the call, from 0."""


class CountingExecutor:
    """Base of the executors to which it matters which call of a layer they run.

    Attributes:
        calls: how often each layer was called in this frame.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def __call__(self, layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        """Run the next call of a layer in this frame."""
        name = layer.settings.name
        call = name, self.calls.get(name, 0)
        self.calls[name] = call[1] + 1
        return self.run(layer, call, x, options)

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Return z for the input ``x`` of this call; ``options`` are further arguments of the operation."""
        raise NotImplementedError
