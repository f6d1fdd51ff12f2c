"""``resq search``: the fewest bits for an accuracy, of the user's model on the user's video."""

from __future__ import annotations

import argparse
import dataclasses
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
    from resq_mmengine.search_settings import SearchSettings
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
        "with the float model. Prints the front and leaves plan.json, plan.py, front.json, report.html and a "
        "calibrated checkpoint, which `resq export` takes. A killed search goes on where it was. What the options "
        "leave open is taken from resq = dict(search=...) of the config.",
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
    parser.add_argument("--held-out", type=float, metavar="SHARE", help="clips that verify plans (default: 0.25)")
    parser.add_argument("--clips", type=int, metavar="N", help="clips of T frames taken of the videos (default: 8)")
    parser.add_argument("--seed", type=int, help="of what is drawn (default: 0)")
    parser.set_defaults(run=_run)


def _target(args: argparse.Namespace, asked: Target) -> Target:
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
    values |= {"pools": False} if args.no_pools else {}
    values |= {"shared_inputs": True} if args.shared_inputs else {}
    return dataclasses.replace(asked, **values)


def _asked(args: argparse.Namespace) -> tuple[dict[str, float | None], SearchSettings, dict[str, Any]]:
    """Goals, what else is asked, and fields that all plans have; options go before ``resq.search`` of the config."""
    from resq_mmengine.options import read_options  # noqa: PLC0415
    from resq_mmengine.plan_search import common_of  # noqa: PLC0415
    from resq_mmengine.search_settings import SearchSettings  # noqa: PLC0415
    from resq_mmengine.settings import read_settings  # noqa: PLC0415
    from resq_mmengine.zoo import load_config  # noqa: PLC0415
    from resq_plugin.planning import Goal  # noqa: PLC0415

    goal = {"max_drop": args.max_drop, "max_gbops": args.max_gbops, "max_state_mb": args.max_state_mb}
    config = load_config(args.config)
    config.merge_from_dict(read_options(args.cfg_options))
    settings = read_settings(config.get("resq"))
    own = None if settings is None else settings.search
    if own is not None:
        goal = {key: value if value is not None else getattr(own.goal, key) for key, value in goal.items()}
    found = Goal(**goal)  # what is impossible is said before anything is built
    asked = dataclasses.replace(own, goal=found) if own is not None else SearchSettings(found)
    options = {"held_out": args.held_out, "clips": args.clips, "seed": args.seed}
    options = {key: value for key, value in options.items() if value is not None}
    asked = dataclasses.replace(asked, target=_target(args, asked.target), **options)
    return goal, asked, {} if settings is None else common_of(settings.config)


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.planning import search  # noqa: PLC0415

    check_folder(args.out, option="--out")
    goal, asked, common = _asked(args)
    own = read_own_model(args)
    length = max(asked.target.intervals)
    clips, labels = _clips(own, args, length, asked.clips)
    count = max(1, round(len(clips) * asked.held_out))
    if len(clips) < 2:
        msg = (
            f"{len(clips)} clips of {length} frames cannot be parted by --held-out {asked.held_out:g}; "
            "give longer videos, shorter intervals (--interval 4), or a share such as 0.25."
        )
        raise ConfigError(msg)
    found = search(
        own.raw,
        clips[:-count],
        held_out=clips[-count:],
        target=asked.target,
        labels=labels[-count:] if args.labels else None,
        metric=own.metric if args.labels else None,
        predict=own.read,
        agreement=own.agreement,
        criterion="squared" if own.scope == "mmpose" else "kl",
        seed=asked.seed,
        folder=args.out,
        **goal,
        **common,
    )
    if args.json:
        write_json(args.json, {"rows": found.rows(), "finding": found.finding})
    console.print(found.table(console.width), highlight=False, markup=False, soft_wrap=True)
    for line in (found.finding, *found.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _say_plan(found, own, clips, args, console)
    try:
        pictures = " ".join(map(str, (*found.plot(args.out), found.report(args.out, title=_title(args)))))
    except MissingExtraError as error:
        pictures = str(error)
    console.print(f"To look at: {pictures}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _title(args: argparse.Namespace) -> str:
    return f"The fewest bits for {Path(args.config).stem} on {', '.join(path.name for path in args.video)}"


def _clips(own: OwnModel, args: argparse.Namespace, length: int, clips: int) -> tuple[list[Any], list[Any]]:
    """So many clips of T frames evenly chosen from all videos, and their labels."""
    known: Sequence[Any] = own.labels(args.labels) if args.labels else [[None] * len(video) for video in own.frames]
    places = [
        (index, start)
        for index, video in enumerate(own.frames)
        for start in range(0, max(len(video) - length, 0) + 1, length)
    ]
    count = min(clips, len(places))
    chosen = [places[position * len(places) // count] for position in range(count)]
    found = [own.frames[index][start : start + length] for index, start in chosen]
    return found, [list(known[index][start : start + length]) for index, start in chosen]


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
