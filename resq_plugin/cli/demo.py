"""``resq demo``: every scheme on a video, with figures and a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resq_plugin.cli.commands import Commands, add_command
from resq_plugin.cli.output import write_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add"]


def add(commands: Commands) -> None:
    """``resq demo``: every scheme on a video, with figures and a report."""
    parser = add_command(
        commands,
        "demo",
        help="compare float, frame quantization, ResQ and Dynamic-ResQ on a video",
        description="Run a small segmentation net on a video in float, frame-quantized, with ResQ and Dynamic-ResQ; "
        "print a table and write figures, report.html and demo.json. Needs no download and about a minute.",
    )
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="your own video file (default: embedded labelled scenes)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("resq-demo"),
        metavar="DIR",
        help="folder for what is written (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.demo import demo_command  # noqa: PLC0415

    values = demo_command(args.video, args.out, console)
    for path in (args.out / "demo.json", args.json):
        if path:
            write_json(path, values)
    return 0
