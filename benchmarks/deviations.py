"""What each choice beside the paper's does: one setting changed at a time, on CamVid val, T = 3.

uv run --group dev python benchmarks/deviations.py                       # about ten minutes on 2 cores
uv run --group dev python benchmarks/deviations.py --only "first layer"  # some of it; the results of the others stay
"""

from __future__ import annotations

import json
from typing import Any

import torch
from common import accuracy, calibration_clips, camvid, ddrnet, machine, parser, segment, write
from rich.console import Console
from rich.table import Table

from resq_plugin import ResQConfig, calibrate, convert, measure_cost, revert
from resq_plugin.evaluation import float_predictions

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W8A{0,4,8}"
FIRST = {"backbone.stem.0.conv": "W8A8"}
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("paper", STATIC, {}),
    ("reference=quantized", STATIC, {"reference": "quantized"}),
    ("reference=running", STATIC, {"reference": "running"}),
    ("weights=channel (paper's Table 2)", STATIC, {"weights": "channel"}),
    ("keyframe_grid=unsigned", STATIC, {"keyframe_grid": "unsigned"}),
    ("frame, paper's grid", "W8A4", {}),
    ("frame, keyframe_grid=unsigned", "W8A4", {"keyframe_grid": "unsigned"}),
    ("frame, paper's grid, first layer W8A8", "W8A4", {"overrides": FIRST}),
    ("frame, keyframe_grid=unsigned, first layer W8A8", "W8A4", {"overrides": FIRST, "keyframe_grid": "unsigned"}),
    ("policy literal: normalize=none, τ=0.0003", DYNAMIC, {"policy": {"normalize": "none", "threshold": 0.0003}}),
    ("policy literal: normalize=none, τ=1", DYNAMIC, {"policy": {"normalize": "none", "threshold": 1.0}}),
    ("policy normalize=layer, τ=0.1", DYNAMIC, {}),
    ("granularity=region, 8×8", DYNAMIC, {"policy": {"granularity": "region"}}),
    ("granularity=frame", DYNAMIC, {"policy": {"granularity": "frame"}}),
)


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__, "deviations.json")
    options.add_argument("--only", default="", metavar="TEXT", help="run settings whose name holds this")
    args = options.parse_args()
    kept = {row["setting"]: row for row in json.loads(args.out.read_text())["rows"]} if args.out.exists() else {}
    torch.set_num_threads(args.threads)
    console = Console()
    model = ddrnet(args.data / "weights" / "ddrnet23slim_camvid.pth")
    frames, labels = camvid(args.data, "val")
    clips = calibration_clips(camvid(args.data, "calib")[0])
    targets = {"mIoU": [labels], "agreement": float_predictions(model, [frames], segment)}
    table = Table("setting", "precision", "mIoU", "agreement %", "GBOPs per frame")
    for label, precision, settings in CASES:
        if args.only not in label:
            continue
        config = ResQConfig.parse(precision, **settings)
        convert(model, config, example=frames[0])
        calibrate(model, clips)
        result = accuracy(model, frames, targets, config.interval if config.residual else 1)
        revert(model)
        cost = measure_cost(model, tuple(frames[0].shape), config, **result.amortized())
        row = {"setting": label, "precision": precision, "interval": config.interval, "miou": result.mean("mIoU")}
        row |= {"agreement": result.mean("agreement"), "gbops_per_frame": cost.bops_per_frame / 1e9}
        kept[label] = row
        rows = [kept[name] for name, *_ in CASES if name in kept]
        numbers = f"{row['miou']:.1f}", f"{row['agreement']:.1f}", f"{row['gbops_per_frame']:.1f}"
        table.add_row(label, precision, *numbers)
        write(args.out, {"data": "CamVid val, 36 frames, 480x360, T = 3", "machine": machine(), "rows": rows})
        console.log(label, *numbers)
    console.print(table)


if __name__ == "__main__":
    main()
