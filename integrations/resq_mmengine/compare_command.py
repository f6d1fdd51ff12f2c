"""``resq compare``: the user's model on the user's video, every scheme in one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resq_mmengine.own_options import add_own_model, read_own_model
from resq_plugin.cli import Commands, add_command, write_json
from resq_plugin.errors import ConfigError
from resq_plugin.files import check_folder

if TYPE_CHECKING:
    from rich.console import Console

    from resq_plugin.comparison import Comparison

__all__ = ["add"]


def add(commands: Commands) -> None:
    """``resq compare CONFIG --checkpoint CK --video FILE ...``."""
    parser = add_command(
        commands,
        "compare",
        needs={"mmengine": "mmseg", "av": "video"},
        help="your model on your video: float, frame quantization, ResQ and Dynamic-ResQ",
        description="Run a model of MMSeg or MMPose on a video in float, frame-quantized, with ResQ and with "
        "Dynamic-ResQ; no labels are needed: accuracy is then the agreement with the float model. Prints a table, a "
        "sentence and the lines of the best setting, and leaves report.html, rows.json and a checkpoint per setting, "
        "which `resq export` takes. A killed run goes on where it was.",
    )
    add_own_model(parser, "resq-compare")
    parser.add_argument("--precision", nargs="+", metavar="P", help="e.g. W8A8 'W8A8->W4A4' (default: a small sweep)")
    parser.add_argument("--interval", type=int, nargs="+", default=[3], metavar="T", help="(default: 3)")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.1], metavar="τ", help="(default: 0.1)")
    parser.add_argument(
        "--calibrate",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="videos that ranges are found on (default: the first quarter of each video, which is then not measured)",
    )
    parser.add_argument(
        "--plan", type=Path, nargs="+", default=(), metavar="FILE", help="also these plans of `resq search`, plan.json"
    )
    parser.add_argument("--weights", choices=("tensor", "channel"), default="tensor", help="(default: %(default)s)")
    parser.add_argument(
        "--grid", choices=("symmetric", "unsigned"), default="symmetric", help="(default: %(default)s)"
    )
    parser.add_argument("--reference", choices=("float", "quantized", "running"), default="float")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.comparison import DEFAULT_SETTINGS, compare, expand  # noqa: PLC0415
    from resq_plugin.planning import read_plan  # noqa: PLC0415
    from resq_plugin.report import is_report, rich_table  # noqa: PLC0415

    check_folder(args.out, option="--out")
    report = args.out / "report.html"
    if report.exists() and not is_report(report):
        msg = f"{report} is there and no report of an earlier comparison; give --out another folder."
        raise ConfigError(msg)
    common = {"weights": args.weights, "keyframe_grid": args.grid, "reference": args.reference}
    plans = [read_plan(path) for path in args.plan]
    settings = [*(args.precision or DEFAULT_SETTINGS), *plans]
    longest = max([*args.interval, *(plan.interval for plan in plans)])
    expand(settings, args.interval, args.threshold, **common)  # what is impossible is said before anything is built
    own = read_own_model(args)
    found = compare(
        own.model,
        own.frames,
        settings,
        intervals=args.interval,
        thresholds=args.threshold,
        labels=own.labels(args.labels) if args.labels else None,
        metric=own.metric if args.labels else None,
        predict=own.predict,
        agreement=own.agreement,
        calibration=own.clips(args.calibrate, longest) if args.calibrate else 0.25,
        folder=args.out,
        **common,
    )
    if args.json:
        write_json(args.json, {"rows": [dict(row) for row in found.rows], "finding": found.finding})
    console.print(rich_table(found.rows))
    for line in filter(None, [found.finding, *found.notes]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _say_best(found, args, console)
    return 0


def _say_best(found: Comparison, args: argparse.Namespace, console: Console) -> None:
    from resq_plugin.report import row_label  # noqa: PLC0415

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        best = found.best()
    except ConfigError as error:
        say(str(error))
        return
    say(f"\n{row_label(best)} in an mm config:\n\n{found.fragment(best)}")
    say(f"\nand in Python:\n\n{found.python(best)}\n")
    if found.showcase is not None:
        say(f"Film: {found.film(args.out / 'compare.mp4')}")
    report = found.report(args.out / "report.html", title=f"ResQ on {', '.join(path.name for path in args.video)}")
    say(f"Report: {report}")
    say(f"Export: resq export {args.config} --checkpoint {found.checkpoint(best)} --out DIR --shape H W")
