"""``resq search``: the fewest bits for an accuracy, of the user's model on the user's video."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_mmengine.own_options import add_own_model, read_own_model
from resq_plugin.cli import Commands, add_command, write_json
from resq_plugin.errors import ConfigError, MissingExtraError
from resq_plugin.files import check_folder

if TYPE_CHECKING:
    from rich.console import Console

    from resq_mmengine.own_model import OwnModel
    from resq_plugin.planning import SearchResult, Target

__all__ = ["add"]


def add(commands: Commands) -> None:
    """``resq search CONFIG --checkpoint CK --video FILE ... --max-drop 0.5``."""
    parser = add_command(
        commands,
        "search",
        needs={"mmengine": "mmseg", "av": "video"},
        help="your accuracy, the fewest bit operations: precision, pool and τ per layer, and T",
        description="Find how each layer of a model of MMSeg or MMPose can run with the fewest bit operations for an "
        "accuracy, or with the best accuracy for bit operations. No labels are needed: accuracy is then the agreement "
        "with the float model. Prints the front and leaves plan.json, plan.py, front.json and a calibrated "
        "checkpoint, which `resq export` takes. A killed search goes on where it was.",
    )
    add_own_model(parser, "resq-search")
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help="accuracy that may be lost, e.g. 0.5")
    parser.add_argument("--max-gbops", type=float, metavar="GBOPS", help="bit operations per frame")
    parser.add_argument("--max-state-mb", type=float, metavar="MB", help="megabytes kept between frames")
    parser.add_argument("--weight-bits", type=int, nargs="+", metavar="B", help="of the target, e.g. 4 8")
    parser.add_argument("--activation-bits", type=int, nargs="+", metavar="B", help="of the target, e.g. 8 16")
    parser.add_argument("--no-pools", action="store_true", help="the target cannot choose bits per pixel")
    parser.add_argument("--shared-inputs", action="store_true", help="layers that read one tensor run alike")
    parser.add_argument("--region", type=int, metavar="K", help="regions of K × K pixels share a choice")
    parser.add_argument("--interval", type=int, nargs="+", metavar="T", help="(default: 4 8 16)")
    parser.add_argument("--threshold", type=float, nargs="+", metavar="τ", help="(default: 0.03 0.1 0.2 0.4)")
    parser.add_argument("--weights", choices=("tensor", "channel"), nargs="+", help="(default: what is better)")
    parser.add_argument("--grid", choices=("symmetric", "unsigned"), nargs="+", help="(default: what is better)")
    parser.add_argument("--reference", choices=("float", "quantized", "running"), nargs="+", help="(default: all)")
    parser.add_argument(
        "--held-out", type=float, default=0.25, metavar="SHARE", help="clips that verify plans (default: 0.25)"
    )
    parser.add_argument(
        "--clips", type=int, default=8, metavar="N", help="clips of T frames taken of the videos (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.set_defaults(run=_run)


def _target(args: argparse.Namespace) -> Target:
    from resq_plugin.planning import Target  # noqa: PLC0415

    named = {
        "weight_bits": args.weight_bits,
        "activation_bits": args.activation_bits,
        "intervals": args.interval,
        "thresholds": args.threshold,
        "weights": args.weights,
        "grids": args.grid,
        "references": args.reference,
    }
    values: dict[str, Any] = {key: tuple(value) for key, value in named.items() if value is not None}
    if args.region is not None:
        values |= {"granularity": "region", "region": args.region}
    return Target(pools=not args.no_pools, shared_inputs=args.shared_inputs, **values)


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.planning import Goal, search  # noqa: PLC0415

    check_folder(args.out, option="--out")
    target = _target(args)
    goal = {"max_drop": args.max_drop, "max_gbops": args.max_gbops, "max_state_mb": args.max_state_mb}
    Goal(**goal)  # what is impossible is said before anything is built
    own = read_own_model(args)
    clips, labels = _clips(own, args, max(target.intervals))
    count = max(1, round(len(clips) * args.held_out))
    if not 0 < args.held_out < 1 or len(clips) < 2:
        msg = (
            f"{len(clips)} clips of {max(target.intervals)} frames cannot be parted by --held-out {args.held_out:g}; "
            "give longer videos, shorter intervals (--interval 4), or a share such as 0.25."
        )
        raise ConfigError(msg)
    found = search(
        own.raw,
        clips[:-count],
        held_out=clips[-count:],
        target=target,
        labels=labels[-count:] if args.labels else None,
        metric=own.metric if args.labels else None,
        predict=own.read,
        agreement=own.agreement,
        criterion="squared" if own.scope == "mmpose" else "kl",
        seed=args.seed,
        folder=args.out,
        **goal,
    )
    if args.json:
        write_json(args.json, {"rows": found.rows(), "finding": found.finding})
    console.print(found.table(console.width), highlight=False, markup=False, soft_wrap=True)
    for line in (found.finding, *found.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _say_plan(found, own, clips, args, console)
    try:
        pictures = " ".join(map(str, found.plot(args.out)))
    except MissingExtraError as error:
        pictures = str(error)
    console.print(f"Pictures: {pictures}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _clips(own: OwnModel, args: argparse.Namespace, length: int) -> tuple[list[Any], list[Any]]:
    """Clips of T frames evenly chosen from all videos, and their labels."""
    known: Sequence[Any] = own.labels(args.labels) if args.labels else [[None] * len(video) for video in own.frames]
    places = [
        (index, start)
        for index, video in enumerate(own.frames)
        for start in range(0, max(len(video) - length, 0) + 1, length)
    ]
    count = min(max(args.clips, 2), len(places))
    chosen = [places[position * len(places) // count] for position in range(count)]
    clips = [own.frames[index][start : start + length] for index, start in chosen]
    return clips, [list(known[index][start : start + length]) for index, start in chosen]


def _say_plan(
    found: SearchResult, own: OwnModel, clips: Sequence[Any], args: argparse.Namespace, console: Console
) -> None:
    from resq_plugin import calibrate, convert, revert, save_checkpoint  # noqa: PLC0415

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        plan = found.plan
    except ConfigError:
        return
    path = found.save(args.out)
    convert(own.raw, plan.config, example=clips[0][0])
    try:
        calibrate(own.raw, clips)
        checkpoint = args.out / "plan.pth"
        save_checkpoint(own.raw, checkpoint)
    finally:
        revert(own.raw)
    config = Path(args.config).resolve() if Path(args.config).exists() else args.config
    say(f"Plan: {path}")
    say(f"In an mm config: _base_ = ['{config}', '{path.with_suffix('.py').resolve()}']")
    say("In Python: convert(model, read_plan('plan.json')); calibrate(model, clips)")
    say(f"Compare: resq compare {args.config} --checkpoint {args.checkpoint} --plan {path} --video FILE")
    say(f"Export: resq export {args.config} --checkpoint {checkpoint} --out DIR --shape H W")
