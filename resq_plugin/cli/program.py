"""The command line: ``resq cost``, ``resq demo``, ...

A command is a function ``add_<name>(commands)`` that adds its arguments and sets ``run``, a function of the parsed
arguments and the console that returns the exit code. List it in `COMMANDS`. Exit codes: 0 done, 2 the user can put
it right.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from resq_mmengine.command import add_eval
from resq_mmengine.config_command import add_configs
from rich.console import Console

from resq_plugin import __version__
from resq_plugin.cli.export import add_export, add_verify
from resq_plugin.errors import ConfigError, ResQError

__all__ = ["COMMANDS", "main", "write_json"]

USER_ERROR = 2


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_cost(commands: argparse._SubParsersAction[_Parser]) -> None:
    """``resq cost``: bit operations of a model of MMSeg or MMPose."""
    parser = commands.add_parser(
        "cost",
        help="count MACs, bit operations and state bytes of an mm model; needs no weights",
        description="Count MACs, bit operations (BOPs) and state bytes per frame of a model of MMSeg or MMPose.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="config file, or a model-zoo name such as mmseg::ddrnet/....py"
    )
    parser.add_argument(
        "--precision", default="W8A8->W4A4", help="keyframe->residual, e.g. 'W8A8->W4A{0,4,8}' (default: %(default)s)"
    )
    parser.add_argument(
        "--interval", type=int, default=3, metavar="T", help="frames per keyframe (default: %(default)s)"
    )
    parser.add_argument(
        "--shape", type=int, nargs=2, required=True, metavar=("H", "W"), help="height and width of a frame in pixels"
    )
    parser.add_argument(
        "--exclude", nargs="+", default=(), metavar="PATTERN", help="layers that stay in float, e.g. 'decode_head.*'"
    )
    parser.add_argument(
        "--reference",
        default="float",
        help="what residuals refer to: float, quantized, running (default: %(default)s)",
    )
    parser.add_argument(
        "--depth", type=int, default=2, help="rows per module depth; 0: per layer (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.set_defaults(run=_run_cost)


def _run_cost(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.config import ResQConfig  # noqa: PLC0415
    from resq_plugin.cost import (  # noqa: PLC0415
        cost_table,
        measure_cost,
        uncounted_summary,
    )

    settings = {"interval": args.interval, "exclude": tuple(args.exclude), "reference": args.reference}
    config = ResQConfig.parse(args.precision, **settings)
    if args.depth < 0:
        msg = f"--depth {args.depth} is not allowed; write 0 for one row per layer, or 1, 2, ... for modules."
        raise ConfigError(msg)
    # The toolkits take long to import: only once the arguments are known to be good.
    from resq_mmengine.zoo import FrameModel, build_model  # noqa: PLC0415

    height, width = args.shape
    model = FrameModel(build_model(args.config))
    cost = measure_cost(model, (1, 3, height, width), config)
    if args.json:
        values = {
            "gmacs": cost.macs / 1e9,
            "gbops_keyframe": cost.bops_keyframe / 1e9,
            "gbops_residual": cost.bops_residual / 1e9,
            "gbops_per_frame": cost.bops_per_frame / 1e9,
            "gbops_peak": cost.peak_bops / 1e9,
            "gbops_policy": cost.policy_bops / 1e9,
            "is_upper_bound": cost.is_upper_bound,
            "state_bytes": cost.state_bytes,
            "uncounted": [str(ops) for ops in cost.uncounted],
            "float_layers": list(cost.float_layers),
            "config": args.config,
            "precision": config.notation,
            "interval": cost.interval,
            "shape": [1, 3, height, width],
        }
        write_json(args.json, values)
    console.print(cost_table(cost, args.depth or None))
    console.print(f"Peak (the most expensive frame): {cost.peak_bops / 1e9:.1f} GBOPs", highlight=False)
    if cost.float_layers:
        console.print(f"In float: {', '.join(cost.float_layers)}", highlight=False, soft_wrap=True)
    if cost.uncounted:
        console.print(f"Not counted: {uncounted_summary(cost)}", highlight=False, soft_wrap=True)
    return 0


def add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    """``resq demo``: every scheme on a video, with figures and a report."""
    parser = commands.add_parser(
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
    parser.set_defaults(run=_run_demo)


def _run_demo(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.demo.command import demo_command  # noqa: PLC0415

    values = demo_command(args.video, args.out, console)
    for path in (args.out / "demo.json", args.json):
        if path:
            write_json(path, values)
    return 0


COMMANDS: tuple[Callable[[argparse._SubParsersAction[_Parser]], None], ...] = (
    add_demo,
    add_cost,
    add_eval,
    add_export,
    add_verify,
    add_configs,
)
"""Every subcommand."""


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result for machines, making the folders above it.

    Raises:
        ResQError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}; give --json a file in a folder you may write to."
        raise ResQError(msg) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, or 2 when the user can put it right, with one line on stderr that tells how.
    """
    parser = _Parser(prog="resq", description="ResQ: residual quantization for video perception.")
    parser.add_argument("--version", action="version", version=f"resq-plugin {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what is done; with errors also where")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        code: int = args.run(args, Console())
    except ResQError as error:
        if args.verbose:
            logging.getLogger(__name__).exception("the command failed")
        sys.stderr.write(f"resq {args.command}: error: {' '.join(str(error).split())}\n")
        return USER_ERROR
    return code


if __name__ == "__main__":
    sys.exit(main())
