"""How results look: one colour per scheme, in figures, tables and reports alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.extras import need

__all__ = ["BIT_COLOURS", "COLOURS", "NAMES", "SCHEMES", "bit_colour", "figure"]

SCHEMES = ("float", "frame", "resq", "dynamic")
NAMES = {"float": "Float", "frame": "Frame quantization", "resq": "ResQ", "dynamic": "Dynamic-ResQ"}

# Okabe and Ito: told apart with every common colour blindness, and by their brightness in grey print.
COLOURS = {"float": "#4d4d4d", "frame": "#d55e00", "resq": "#0072b2", "dynamic": "#009e73"}

# Dark blue, light blue and yellow as in Fig. 6, in order of brightness.
BIT_COLOURS = ("#1b2a6b", "#6db4e8", "#f7d13d", "#d7642c", "#7a1f1f")

DPI = 150

_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#8a8a8a",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "savefig.facecolor": "white",
}


def bit_colour(bits: int, pool: tuple[int, ...]) -> str:
    """Return the colour of one bit width of a pool, dark for few bits."""
    return BIT_COLOURS[min(pool.index(bits), len(BIT_COLOURS) - 1)]


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """Give a `matplotlib.figure.Figure` in the common style, and save it as PNG afterwards.

    pyplot and its global figures are left alone, so that figures can be made in any thread of a larger program.

    Args:
        path: the PNG to write; folders above it are made.
        width: in inches.
        height: in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: the file cannot be written.
    """
    matplotlib = need("matplotlib")
    make = need("matplotlib.figure").Figure
    need("matplotlib.backends.backend_agg")
    with matplotlib.rc_context(_RC):
        drawing = make(figsize=(width, height), dpi=DPI, layout="constrained")
        yield drawing
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.savefig(path, format="png", metadata={"Software": None})
        except OSError as error:
            msg = f"cannot write {path}: {error.strerror or error}; name a file in a folder you may write to."
            raise ReportError(msg) from error
