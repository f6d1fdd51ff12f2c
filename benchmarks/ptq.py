"""What better post-training quantization gives: DDRNet-23-slim on CamVid val, one change at a time.

uv run --group dev python benchmarks/ptq.py --runs FOLDER                # resumes where it stopped
uv run --group dev python benchmarks/ptq.py --runs FOLDER --only weights # rows whose name or precision holds this

Ranges and fits come from camvid/calib, the same clips of 3 frames as in camvid.py. Measured on camvid/val, every frame
at every position (T = 3), as agreement with float on ten frames of two other drives of camvid/train (`far`), each
frame once, as a keyframe, and where there is a residual path on twelve frames of a highway in another film (`film`),
T = 3 again. What is in `ALTERNATIVES`, `BIASES` and ptq_aimet.py is not part of the library. Calibrations share
statistics; seconds are kept of those that were measured alone (`--alone`), and of AdaRound always.
"""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from common import (
    MEAN,
    STD,
    accuracy,
    calibration_clips,
    camvid,
    ddrnet,
    machine,
    parser,
    require,
    segment,
    write,
)
from ptq_aimet import BIASED, ITERATIONS, adaround, calibrated
from ptq_alternatives import ALTERNATIVES, distance_gain, mean_error
from ptq_means import keyframe_bias, residual_bias
from rich.console import Console
from rich.table import Table
from torch import Tensor

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.calibration import Statistics
from resq_plugin.evaluation import float_predictions
from resq_plugin.video import read

Row = tuple[str, str, str, dict[str, Any]]  # change, precision, weights, calibration
CHANNEL, TENSOR = "channel", "tensor"
PAPER: dict[str, Any] = {}
FIT: dict[str, Any] = {"fit": "weights"}
PLAIN = ("W4A4", CHANNEL)
RESIDUAL = (("W4A4->W3A3", CHANNEL), ("W4A4->W4A4", CHANNEL), ("W8A8->W4A4", TENSOR))
BIASES = {"residual bias": PAPER, "fit=weights, residual bias": FIT}
ROWS: tuple[Row, ...] = (
    ("paper", *PLAIN, PAPER),
    ("candidates=40", *PLAIN, {"candidates": 40}),
    ("fit=bias", *PLAIN, {"fit": "bias"}),
    ("fit=weights", *PLAIN, FIT),
    ("fit=weights", "W4A4", TENSOR, FIT),
    ("fit=weights", "W4A8", CHANNEL, FIT),
    *((name, *of, fit) for of in RESIDUAL for name, fit in (("paper", PAPER), ("fit=weights", FIT), *BIASES.items())),
    *((name, *PLAIN, PAPER) for name in ITERATIONS),
    ("AIMET, AdaRound", *RESIDUAL[0], PAPER),
    *((name, *PLAIN, PAPER) for name in ALTERNATIVES),
)
"""The paper's rows of other precisions are in camvid.json."""
DRIVES = ("0001TP", "0006R0")


def far_frames(data: Any) -> list[Tensor]:
    """Ten frames of two drives that neither ranges nor val are of."""
    paths = sorted(require(data / "camvid" / "train").glob("*.png"))
    frames, _ = camvid(data, "train")
    of_drives = [[f for p, f in zip(paths, frames, strict=True) if p.name.startswith(drive)] for drive in DRIVES]
    return [frame for found in of_drives for frame in found[5::12][:5]]


def film(data: Path) -> list[Tensor]:
    """Twelve frames of a film that is not CamVid's."""
    path = require(data / "video_driving" / "solidWhiteRight.mp4")
    return list(read(path, size=(360, 480), mean=MEAN, std=STD, frames=12))


def quantized(float_model: Any, row: Row, clips: list[list[Tensor]], statistics: Any, runs: Path) -> tuple[Any, float]:
    """Return a copy of the network as a row has it, and the seconds of CPU time that took."""
    name, precision, weights, settings = row
    config = ResQConfig.parse(precision, weights=weights, calibration=settings)
    start = time.process_time()
    if name in ITERATIONS:
        folder = runs / f"{ITERATIONS[name]} iterations, {config.keyframe.weight} bits"
        rounded, seconds = adaround(float_model, clips, config.keyframe.weight, ITERATIONS[name], folder)
        start = time.process_time() - seconds
        model = calibrated(rounded, clips, config, folder)
        if name == BIASED:
            keyframe_bias(model, clips, convert(copy.deepcopy(float_model), config, example=clips[0][0]))
    else:
        model = convert(copy.deepcopy(float_model), config, example=clips[0][0])
        calibrate(model, clips, statistics=statistics)
    if name in ALTERNATIVES:
        ALTERNATIVES[name](model, clips)
    if name in BIASES:
        residual_bias(model, clips)
    return model, time.process_time() - start


def main() -> None:
    """Measure what is not in the file yet, print and write the table."""
    options = parser(__doc__, "ptq.json")
    options.add_argument(
        "--alone", action="store_true", help="share nothing between calibrations, and keep their time"
    )
    options.add_argument("--runs", type=Path, required=True, help="folder of what AdaRound leaves")
    options.add_argument("--only", default="", metavar="TEXT", help="run rows whose name or precision holds this")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    kept = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    model = ddrnet(args.data / "weights" / "ddrnet23slim_camvid.pth")
    frames, labels = camvid(args.data, "val")
    elsewhere = {"far": (far_frames(args.data), 1), "film": (film(args.data), 3)}
    clips = calibration_clips(camvid(args.data, "calib")[0])
    targets = {"mIoU": [labels], "agreement": float_predictions(model, [frames], segment)}
    expected = {where: float_predictions(model, [found], segment) for where, (found, _) in elsewhere.items()}
    shared = None if args.alone else Statistics()
    for row in ROWS:
        name, precision, weights, settings = row
        key = {"change": name, "precision": precision, "weights": weights}
        if args.only not in f"{name} {precision}" or any(key.items() <= kept_row.items() for kept_row in kept["rows"]):
            continue
        quantized_model, seconds = quantized(model, row, clips, shared, args.runs)
        is_plain = (precision, weights) == PLAIN and "fit" not in settings and name not in ITERATIONS
        found = {
            "calibration_seconds": round(seconds, 1) if args.alone or ITERATIONS.get(name) else None,
            "layer_error": mean_error(quantized_model, clips) if is_plain else None,
        }
        has_residuals = "->" in precision
        result = accuracy(quantized_model, frames, targets, 3 if has_residuals else 1)
        found |= {"miou": round(result.mean("mIoU"), 2), "agreement": round(result.mean("agreement"), 2)}
        for where, (others, interval) in elsewhere.items():
            if has_residuals or interval == 1:
                result = accuracy(quantized_model, others, {"agreement": expected[where]}, interval)
                found[where] = round(result.mean("agreement"), 2)
        kept["rows"].append({**key, **found})
        console.log(kept["rows"][-1])
        write(args.out, {**kept, "data": "CamVid val, 36 frames, 480x360, T = 3", "machine": machine()})
    if "distances" not in kept and not args.only:
        of_distances = convert(copy.deepcopy(model), ResQConfig.parse("W8A8->W4A4", interval=8), example=frames[0])
        kept["distances"] = distance_gain(of_distances, calibration_clips(camvid(args.data, "calib")[0], 8, 8))
        write(args.out, kept)
    columns = "mIoU", "agreement %", "far %", "film %", "layer error %", "calibration, s"
    table = Table("change", "precision", "weights", *columns)
    for row in kept["rows"]:
        error = "" if row["layer_error"] is None else f"{row['layer_error']:.1%}"
        numbers = *(f"{row.get(name, math.nan):.1f}" for name in ("miou", "agreement", "far", "film")), error
        seconds = "" if row["calibration_seconds"] is None else f"{row['calibration_seconds']:.0f}"
        table.add_row(row["change"], row["precision"], row["weights"], *numbers, seconds)
    console.print(table)
    console.print("residual ranges per distance:", kept.get("distances"))


if __name__ == "__main__":
    main()
