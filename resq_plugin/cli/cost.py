"""``resq cost``: bit operations of a model of MMSeg or MMPose, or of a video object segmentation network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resq_plugin.cli.commands import Commands, add_command, missing, require
from resq_plugin.cli.output import write_json
from resq_plugin.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from resq_plugin.config import ResQConfig
    from resq_plugin.cost import Cost

__all__ = ["add"]

MM = {"mmengine": "mmseg"}
VOS = "vos::"


def add(commands: Commands) -> None:
    """``resq cost``: bit operations of a model of MMSeg or MMPose, or of a video object segmentation network."""
    parser = add_command(
        commands,
        "cost",
        needs=MM,
        help="count MACs, bit operations and state bytes of an mm model; needs no weights",
        description="Count MACs, bit operations (BOPs) and state bytes per frame of a model of MMSeg or MMPose, or of "
        "a network of video object segmentation, whose keys and values stay in float and are not counted.",
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="config file, or a model-zoo name such as mmseg::ddrnet/....py, or vos::stm, vos::stm-small",
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
    parser.add_argument(
        "--objects", type=int, metavar="N", help="objects in a frame, for networks of video object segmentation"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.set_defaults(run=_run, missing="")  # not every CONFIG needs the toolkits


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.config import ResQConfig  # noqa: PLC0415
    from resq_plugin.cost import cost_table, uncounted_summary  # noqa: PLC0415

    settings = {"interval": args.interval, "exclude": tuple(args.exclude), "reference": args.reference}
    config = ResQConfig.parse(args.precision, **settings)
    if args.depth < 0:
        msg = f"--depth {args.depth} is not allowed; write 0 for one row per layer, or 1, 2, ... for modules."
        raise ConfigError(msg)
    cost = _measure_vos(args, config) if args.config.startswith(VOS) else _measure_mm(args, config)
    height, width = args.shape
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
        values |= {"objects": args.objects or 1} if args.config.startswith(VOS) else {}
        write_json(args.json, values)
    console.print(cost_table(cost, args.depth or None))
    console.print(f"Peak (the most expensive frame): {cost.peak_bops / 1e9:.1f} GBOPs", highlight=False)
    if cost.float_layers:
        console.print(f"In float: {', '.join(cost.float_layers)}", highlight=False, soft_wrap=True)
    if cost.uncounted:
        console.print(f"Not counted: {uncounted_summary(cost)}", highlight=False, soft_wrap=True)
    return 0


def _measure_mm(args: argparse.Namespace, config: ResQConfig) -> Cost:
    from resq_plugin.cost import measure_cost  # noqa: PLC0415

    if args.objects is not None:
        msg = f"--objects {args.objects}: only networks of video object segmentation have objects; leave it out."
        raise ConfigError(msg)
    require("cost", missing(MM))
    # The toolkits take long to import: only once the arguments are known to be good.
    from resq_mmengine.zoo import FrameModel, build_model  # noqa: PLC0415

    return measure_cost(FrameModel(build_model(args.config)), (1, 3, *args.shape), config)


def _measure_vos(args: argparse.Namespace, config: ResQConfig) -> Cost:
    from resq_vos.cost import quantized_only, vos_cost  # noqa: PLC0415
    from resq_vos.models import named_stm  # noqa: PLC0415
    from resq_vos.stm import FLOAT_LAYERS  # noqa: PLC0415

    config = config.replace(exclude=(*config.exclude, *FLOAT_LAYERS))
    objects = 1 if args.objects is None else args.objects
    cost: Cost = quantized_only(vos_cost(named_stm(args.config), (1, 3, *args.shape), config, objects=objects))
    return cost
