"""Tables of a terminal as plain text, for results that are printed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["WIDTH", "table_text"]

WIDTH = 80


def table_text(renderable: RenderableType, width: int = WIDTH) -> str:
    """Return what ``rich.print`` shows on a terminal of so many columns, without colours."""
    from rich.console import Console  # noqa: PLC0415  # not needed before something is printed

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, markup=False, emoji=False).print(renderable)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").splitlines())
