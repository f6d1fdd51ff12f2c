"""``resq compare``: the user's model on the user's video, every scheme in one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    parser.add_argument("config", metavar="CONFIG", help="config file, or a model-zoo name such as mmseg::....py")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CK", help="float weights")
    parser.add_argument(
        "--video", type=Path, required=True, nargs="+", metavar="FILE", help="video files or folders of frames"
    )
    parser.add_argument("--out", type=Path, default=Path("resq-compare"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="label maps called as the frames are, where known")
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
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="resize frames, instead of the config's")
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames of each video")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="pose: JSON list of a box per frame, x0 y0 x1 y1")
    parser.add_argument("--weights", choices=("tensor", "channel"), default="tensor", help="(default: %(default)s)")
    parser.add_argument(
        "--grid", choices=("symmetric", "unsigned"), default="symmetric", help="(default: %(default)s)"
    )
    parser.add_argument("--reference", choices=("float", "quantized", "running"), default="float")
    parser.add_argument(
        "--predict", metavar="MODULE:FUNCTION", help="makes what is compared, a tensor, of the raw output of the head"
    )
    parser.add_argument("--cfg-options", nargs="+", default=(), metavar="KEY=VALUE", help="as in MMEngine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_mmengine.own_model import OwnModel  # noqa: PLC0415
    from resq_plugin.comparison import DEFAULT_SETTINGS, compare, expand  # noqa: PLC0415
    from resq_plugin.report import is_report, rich_table  # noqa: PLC0415

    check_folder(args.out, option="--out")
    report = args.out / "report.html"
    if report.exists() and not is_report(report):
        msg = f"{report} is there and no report of an earlier comparison; give --out another folder."
        raise ConfigError(msg)
    common = {"weights": args.weights, "keyframe_grid": args.grid, "reference": args.reference}
    settings = args.precision or list(DEFAULT_SETTINGS)
    expand(settings, args.interval, args.threshold, **common)  # what is impossible is said before anything is built
    own = OwnModel(
        args.config,
        args.checkpoint,
        args.video,
        size=tuple(args.size) if args.size else None,
        frames=args.frames,
        boxes=_boxes(args.boxes),
        predict=args.predict,
        options=args.cfg_options,
    )
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
        calibration=own.clips(args.calibrate, max(args.interval)) if args.calibrate else 0.25,
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


def _boxes(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))
        fits = all(len(box) == 4 and all(isinstance(value, (int, float)) for value in box) for box in boxes)
    except (OSError, ValueError, TypeError) as error:
        msg = f"--boxes {path}: {error}; write a JSON list with [left, top, right, bottom] in pixels for each frame."
        raise ConfigError(msg) from error
    if not boxes or not fits:
        msg = f"--boxes {path} holds no list of [left, top, right, bottom] in pixels, one for each frame."
        raise ConfigError(msg)
    return boxes
