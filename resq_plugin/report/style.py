"""How results look: one colour per scheme, in figures, tables and reports alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resq_plugin.errors import ReportError
from resq_plugin.extras import need
from resq_plugin.files import written

__all__ = ["BIT_COLOURS", "COLOURS", "LOOKS", "NAMES", "SCHEMES", "Look", "bare", "bit_colour", "colours_of", "figure"]

SCHEMES = ("float", "frame", "resq", "dynamic")
NAMES = {"float": "Float", "frame": "Frame quantization", "resq": "ResQ", "dynamic": "Dynamic-ResQ"}

# Okabe and Ito: told apart with every common colour blindness, and by their brightness in grey print.
COLOURS = {"float": "#4d4d4d", "frame": "#d55e00", "resq": "#0072b2", "dynamic": "#009e73"}

_ON_DARK = {"float": "#c3c7cf", "frame": "#f08a3c", "resq": "#58b0ea", "dynamic": "#35c795"}

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


@dataclass(frozen=True)
class Look:
    """Where a figure is seen.

    Attributes:
        dark: on a dark page.
        narrow: on a phone, where panels stand below each other.
    """

    dark: bool = False
    narrow: bool = False

    @property
    def suffix(self) -> str:
        """Part of a file's name."""
        return ("-dark" if self.dark else "") + ("-narrow" if self.narrow else "")


LOOKS = tuple(Look(dark, narrow) for narrow in (True, False) for dark in (True, False))
"""All of them, the most particular first; the last is the plain one."""

_DARK_RC = {
    "text.color": "#e4e7ec",
    "axes.edgecolor": "#7b828f",
    "axes.facecolor": "#1a1d24",
    "axes.labelcolor": "#e4e7ec",
    "axes.titlecolor": "#e4e7ec",
    "grid.color": "#323844",
    "xtick.color": "#b4bac5",
    "ytick.color": "#b4bac5",
    "figure.facecolor": "#1a1d24",
    "savefig.facecolor": "#1a1d24",
}


def colours_of(look: Look) -> dict[str, str]:
    """The colours of the schemes on a page of that look."""
    return _ON_DARK if look.dark else COLOURS


def bit_colour(bits: int, pool: tuple[int, ...]) -> str:
    """Return the colour of one bit width of a pool, dark for few bits."""
    return BIT_COLOURS[min(pool.index(bits), len(BIT_COLOURS) - 1)]


def bare(axes: Any) -> None:
    """Leave nothing of the axes of a picture but its labels."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


@contextmanager
def figure(path: Path, width: float, height: float, look: Look | None = None) -> Iterator[Any]:
    """Give a `matplotlib.figure.Figure` in the common style, and save it afterwards.

    pyplot and its global figures are left alone, so that figures can be made in any thread of a larger program.

    Args:
        path: the .png or .svg to write; folders above it are made.
        width: in inches.
        height: in inches.
        look: of the page; a light one unless given.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ReportError: the file cannot be written.
    """
    matplotlib = need("matplotlib")
    make = need("matplotlib.figure").Figure
    need("matplotlib.backends.backend_agg")
    kind = path.suffix.removeprefix(".").lower()
    settings = {**_RC, **(_DARK_RC if look and look.dark else {}), "svg.hashsalt": "resq"}
    with matplotlib.rc_context(settings):
        drawing = make(figsize=(width, height), dpi=DPI, layout="constrained")
        yield drawing
        with written(path, ReportError) as part:
            drawing.savefig(part, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
