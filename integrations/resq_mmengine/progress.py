"""How far a test of MMEngine is, for the bar of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook

__all__ = ["ProgressHook"]


class ProgressHook(Hook):
    """Tells of every batch of a test.

    Args:
        on_batch: told how many batches are done, and of how many.
        total: of how many.
    """

    priority = "VERY_LOW"

    def __init__(self, on_batch: Callable[[int, int], None], total: int) -> None:
        self.on_batch, self.total = on_batch, total

    def after_test_iter(
        self,
        runner: Any,  # noqa: ARG002
        batch_idx: int,
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        """Tell."""
        self.on_batch(batch_idx + 1, self.total)
