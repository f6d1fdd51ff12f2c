"""``resq vos``: masks of the first frame through a user's video, in float, frame by frame and with ResQ."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_plugin.cli import Commands, add_command

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add", "is_davis"]


def add(commands: Commands) -> None:
    """``resq vos VIDEO --mask FIRST.png``."""
    parser = add_command(
        commands,
        "vos",
        needs={"PIL": "vos", "scipy": "vos", "av": "vos"},
        help="propagate masks of the first frame through a video",
        description="Propagate the objects of a mask of the first frame through a video with a Space-Time Memory "
        "network, in float, frame-by-frame quantized and with ResQ; write masks (palette of DAVIS), an overlay video "
        "and a report: agreement in J with the float masks, bit operations. Ranges are calibrated on a float run over "
        "this video, or over --calibrate.",
    )
    parser.add_argument("video", metavar="VIDEO", type=Path, help="video file, or folder of frames")
    parser.add_argument(
        "--mask", required=True, type=Path, metavar="FIRST.png", help="objects of the first frame: 1, 2, ... or 255"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="CK",
        help="weights of an STM; those of the small one come from train_stm.py",
    )
    parser.add_argument("--model", choices=("small", "published"), default="small", help="shape of the STM")
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["W8A8->W4A8"],
        metavar="P",
        help="keyframe->residual, one or more (default: W8A8->W4A8, the paper's for this task)",
    )
    parser.add_argument("--interval", type=int, default=3, metavar="T", help="frames per keyframe (default: 3)")
    parser.add_argument("--every", type=int, default=5, metavar="N", help="remember every N-th frame (default: 5)")
    parser.add_argument(
        "--short-side", type=int, default=240, metavar="PX", help="size the network sees (default: 240, as trained)"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames")
    parser.add_argument(
        "--calibrate", type=Path, nargs=2, metavar=("VIDEO", "MASK"), help="find ranges on another video"
    )
    parser.add_argument("--out", type=Path, default=Path("resq-vos"), metavar="DIR", help="folder to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.set_defaults(run=_run)


def is_davis(path: str) -> bool:
    """Whether a folder has the layout of DAVIS."""
    return all((Path(path) / part).is_dir() for part in ("JPEGImages", "Annotations"))


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.cli import write_json  # noqa: PLC0415
    from resq_plugin.report import progress_bar, rich_table  # noqa: PLC0415
    from resq_vos.on_video import VideoRequest, run_on_video  # noqa: PLC0415

    request = VideoRequest(
        video=args.video,
        mask=args.mask,
        checkpoint=args.checkpoint,
        model=args.model,
        precisions=tuple(args.precision),
        interval=args.interval,
        every=args.every,
        short_side=args.short_side,
        frames=args.frames,
        calibrate=tuple(args.calibrate) if args.calibrate else None,
        out=args.out,
    )
    with progress_bar(console) as bar:
        task = bar.add_task("starting", total=None, completed=-1)
        values: dict[str, Any] = run_on_video(
            request, lambda text, total: bar.update(task, description=text, advance=1, total=total)
        )
    if args.json:
        write_json(args.json, values)
    console.print(rich_table(values["rows"], "J with the float masks"))
    for row in values["rows"]:
        distances = row["by_distance"]["J"]
        if len(distances) > 1:
            numbers = " ".join("–" if math.isnan(value) else f"{value:.1f}" for value in distances)
            console.print(f"{row['precision']}: J at distance 0 ... {len(distances) - 1}: {numbers}", highlight=False)
    console.print(f"Masks, overlays and vos.json are in {args.out}", highlight=False, soft_wrap=True)
    return 0
