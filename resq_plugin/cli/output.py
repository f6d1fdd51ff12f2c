"""What commands write: results for machines, warnings that are seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_plugin.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["warn", "write_json"]


def warn(console: Console, text: str) -> None:
    """Print a warning, marked as one."""
    console.print(f"WARNING: {text}", style="bold yellow", highlight=False, soft_wrap=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result for machines whole or not at all, making the folders above it.

    Raises:
        ResQError: the file cannot be written.
    """
    write_text(path, json.dumps(values, indent=2) + "\n")
