"""What better post-training quantization gives: DDRNet-23-slim on CamVid val, one change at a time.

uv run --group dev python benchmarks/ptq.py                # ten minutes on a core; resumes where it stopped
uv run --group dev python benchmarks/ptq.py --only weights # rows whose name or precision holds this

Ranges and fits come from camvid/calib, the same clips of 3 frames as in camvid.py. Measured on camvid/val, every frame
at every position (T = 3), and as agreement with float on ten frames of two other drives of camvid/train (`far`), each
frame once, as a keyframe. `ALTERNATIVES` change ranges only and are not part of the library. Calibrations share
statistics; seconds are kept of those that were measured alone (`--alone`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from common import accuracy, calibration_clips, camvid, ddrnet, machine, parser, require, segment, write
from ptq_alternatives import ALTERNATIVES, distance_gain, mean_error
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, revert
from resq_plugin.calibration import Statistics
from resq_plugin.evaluation import float_predictions

Row = tuple[str, str, str, dict[str, Any]]  # change, precision, weights, calibration
CHANNEL, TENSOR = "channel", "tensor"
PAPER: dict[str, Any] = {}
LIBRARY: tuple[Row, ...] = (
    ("paper", "W4A4", CHANNEL, PAPER),
    ("candidates=40", "W4A4", CHANNEL, {"candidates": 40}),
    ("fit=bias", "W4A4", CHANNEL, {"fit": "bias"}),
    ("fit=weights", "W4A4", CHANNEL, {"fit": "weights"}),
    *(("fit=weights", precision, CHANNEL, {"fit": "weights"}) for precision in ("W4A4->W3A3", "W4A4->W4A4")),
    ("fit=weights", "W8A8->W4A4", TENSOR, {"fit": "weights"}),
    ("fit=weights", "W4A4", TENSOR, {"fit": "weights"}),
    ("fit=weights", "W4A8", CHANNEL, {"fit": "weights"}),
)
"""The paper's rows of other precisions are in camvid.json."""
DRIVES = ("0001TP", "0006R0")


def far_frames(data: Any) -> list[Tensor]:
    """Ten frames of two drives that neither ranges nor val are of."""
    paths = sorted(require(data / "camvid" / "train").glob("*.png"))
    frames, _ = camvid(data, "train")
    of_drives = [[f for p, f in zip(paths, frames, strict=True) if p.name.startswith(drive)] for drive in DRIVES]
    return [frame for found in of_drives for frame in found[5::12][:5]]


def main() -> None:
    """Measure what is not in the file yet, print and write the table."""
    options = parser(__doc__, "ptq.json")
    options.add_argument(
        "--alone", action="store_true", help="share nothing between calibrations, and keep their time"
    )
    options.add_argument("--only", default="", metavar="TEXT", help="run rows whose name or precision holds this")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    kept = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    model = ddrnet(args.data / "weights" / "ddrnet23slim_camvid.pth")
    frames, labels = camvid(args.data, "val")
    far = far_frames(args.data)
    clips = calibration_clips(camvid(args.data, "calib")[0])
    targets = {"mIoU": [labels], "agreement": float_predictions(model, [frames], segment)}
    of_far = {"agreement": float_predictions(model, [far], segment)}
    shared = Statistics()
    alternatives = [(name, "W4A4", CHANNEL, PAPER) for name in ALTERNATIVES]
    for name, precision, weights, settings in (*LIBRARY, *alternatives):
        key = {"change": name, "precision": precision, "weights": weights}
        if args.only not in f"{name} {precision}" or any(key.items() <= row.items() for row in kept["rows"]):
            continue
        config = ResQConfig.parse(precision, weights=weights, calibration=settings)
        start = time.process_time()
        convert(model, config, example=frames[0])
        calibrate(model, clips, statistics=None if args.alone else shared)
        change: Callable[[nn.Module, Any], None] | None = ALTERNATIVES.get(name)
        if change is not None:
            change(model, clips)
        seconds = time.process_time() - start
        error = (
            mean_error(model, clips) if (precision, weights) == ("W4A4", CHANNEL) and "fit" not in settings else None
        )
        result = accuracy(model, frames, targets, config.interval if config.residual else 1)
        elsewhere = accuracy(model, far, of_far, 1).mean("agreement")
        revert(model)
        row = {**key, "calibration_seconds": round(seconds, 1) if args.alone else None, "layer_error": error}
        row |= {"miou": round(result.mean("mIoU"), 2), "agreement": round(result.mean("agreement"), 2)}
        kept["rows"].append({**row, "far": round(elsewhere, 2)})
        console.log(kept["rows"][-1])
        write(args.out, {**kept, "data": "CamVid val, 36 frames, 480x360, T = 3", "machine": machine()})
    if "distances" not in kept and not args.only:
        convert(model, ResQConfig.parse("W8A8->W4A4", interval=8), example=frames[0])
        kept["distances"] = distance_gain(model, calibration_clips(camvid(args.data, "calib")[0], 8, 8))
        revert(model)
        write(args.out, kept)
    table = Table("change", "precision", "weights", "mIoU", "agreement %", "far %", "layer error %", "calibration, s")
    for row in kept["rows"]:
        error = "" if row["layer_error"] is None else f"{row['layer_error']:.1%}"
        numbers = *(f"{row[name]:.1f}" for name in ("miou", "agreement", "far")), error
        seconds = "" if row["calibration_seconds"] is None else f"{row['calibration_seconds']:.0f}"
        table.add_row(row["change"], row["precision"], row["weights"], *numbers, seconds)
    console.print(table)
    console.print("residual ranges per distance:", kept.get("distances"))


if __name__ == "__main__":
    main()
