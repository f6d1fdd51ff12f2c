"""What commands write: results for machines, warnings that are seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resq_plugin.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["warn", "write_json"]


def warn(console: Console, text: str) -> None:
    """Print a warning, marked as one."""
    console.print(f"WARNING: {text}", style="bold yellow", highlight=False, soft_wrap=True)
