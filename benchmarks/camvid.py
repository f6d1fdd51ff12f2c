"""Accuracy against BOPs on real driving video: DDRNet-23-slim on CamVid, every scheme of the paper in one table.

Ranges are calibrated on clips of 3 consecutive frames of camvid/calib, the same for every T. Accuracy is measured on
camvid/val by the paper's protocol: every frame at every position t <= T, averaged over positions. One run with T = 8
gives all smaller T, whose positions are its first ones. Everything goes through MMEngine's Runner and `ResQHook`,
with the config that `resq eval` takes; mIoU is MMSeg's own IoUMetric.

    uv run --group dev python benchmarks/camvid.py          # everything, an hour on 2 cores; resumes where it stopped
    uv run --group dev python benchmarks/camvid.py --quick  # tensor weights, float reference, T = 3
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import ROOT, ddrnet, machine, parser, require, write
from mmengine.runner import Runner
from resq_mmengine.command import prepare_config
from resq_mmengine.hook import CALIBRATED, ResQHook
from resq_mmengine.zoo import load_config
from rich.console import Console

from resq_plugin import ResQConfig, convert, measure_cost, revert
from resq_plugin.comparison import Setting, row_of
from resq_plugin.evaluation import Evaluation
from resq_plugin.report import rich_table

RECIPE = ROOT / "integrations/resq_mmseg/configs/camvid/resq_ddrnet_23-slim_w8a8-w4a4_camvid-360x480.py"
INTERVALS = (2, 3, 4, 6, 8)
FRAME = ("W8A8", "W4A8", "W8A4", "W4A4")
STATIC = ("W8A8->W8A4", "W8A8->W4A4", "W4A4->W3A3")
DYNAMIC = ("W8A8->W8A{0,4,8}", "W8A8->W4A{0,4,8}")
THRESHOLDS = (0.1, 0.3)
SWEPT_THRESHOLD = 0.1
"""The other one is measured at T = 3 only, to keep the whole run under an hour."""
SHAPE = (1, 3, 360, 480)
DIGITS = {"accuracy": 2, "agreement": 2, "gbops_per_frame": 2, "relative_bops": 4, "state_megabytes": 1}
"""Of the numbers that a row keeps."""

Combination = tuple[str, str, str]  # precision, weights, reference


def settings(quick: bool) -> list[Combination]:
    """Return every combination that is calibrated once, those of the main table first."""
    frames = list(itertools.product(FRAME, ("tensor", "channel"), ("float",)))
    streams = itertools.product(STATIC + DYNAMIC, ("tensor", "channel"), ("float", "quantized", "running"))
    both = frames + sorted(streams, key=lambda s: (s[2] == "running", s[2] == "quantized" and s[1] == "tensor"))
    return [s for s in both if not quick or s[1:] == ("tensor", "float")]


class Bench:
    """The config of the zoo, its data and what was measured so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.scratch = Path(tempfile.mkdtemp())  # of the process: MMEngine keeps the first run's folder open
        data = str(require(args.data / "camvid"))
        self.config = prepare_config(load_config(RECIPE), data_root=data, agreement=True)
        self.weights = str(require(args.data / "weights" / "ddrnet23slim_camvid.pth"))
        self.rows: list[dict[str, Any]] = []
        if args.out.exists() and not args.fresh:
            self.rows = json.loads(args.out.read_text())["rows"]
        self.network = ddrnet()
        self.base = measure_cost(self.network, SHAPE, ResQConfig.parse("W8A8")).bops_per_frame

    def done(self, **key: Any) -> bool:
        """Whether a row with these settings exists."""
        return any(all(row[name] == value for name, value in key.items()) for row in self.rows)

    def test(self, settings: dict[str, Any] | None, folder: str, weights: str) -> tuple[dict[str, Any], Any]:
        """Run MMEngine's test loop and return its metrics and what the hook measured."""
        config = copy.deepcopy(self.config)
        calibration = config.resq["calibration"]
        config.resq = None if settings is None else {**settings, "calibration": calibration}
        if settings is None:
            config.test_evaluator = config.test_evaluator[:1]
        config.work_dir, config.load_from, config.log_level = str(self.scratch / folder), weights, "ERROR"
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            runner = Runner.from_cfg(config)
            metrics = runner.test()
        return metrics, next(hook for hook in runner.hooks if isinstance(hook, ResQHook)).evaluation

    def add(self, config: ResQConfig, result: Evaluation, interval: int) -> None:
        """Add the row of one interval and write the file."""
        result = result.until(interval)
        convert(self.network, config)
        cost = measure_cost(self.network, SHAPE, config.replace(interval=interval), **result.amortized())
        revert(self.network)
        self.rows.append(kept(row_of(Setting(config.replace(interval=interval)), result, cost, self.base, "mIoU")))
        self.write()

    def write(self) -> None:
        """Write all rows."""
        write(self.args.out, {"data": "CamVid val, 36 frames, 480x360", "machine": machine(), "rows": self.rows})

    def float_row(self) -> None:
        """Add the float model."""
        metrics, _ = self.test(None, "float", self.weights)
        found = Evaluation({"mIoU": (float(metrics["mIoU"]),), "agreement": (100.0,)})
        self.rows.append(kept(row_of(Setting(), found, measure_cost(self.network, SHAPE), self.base, "mIoU")))
        self.write()

    def run(self, setting: Combination, intervals: tuple[int, ...]) -> None:
        """Calibrate one setting and measure it at every interval."""
        precision, weights, reference = setting
        scheme = "frame" if "->" not in precision else "dynamic" if "{" in precision else "resq"
        thresholds: tuple[float | None, ...] = THRESHOLDS if scheme == "dynamic" else (None,)
        intervals = (1,) if scheme == "frame" else intervals
        folder = "-".join(setting)
        for threshold in thresholds:
            chosen = intervals if threshold in (None, SWEPT_THRESHOLD) else tuple(set(intervals) & {3})
            key = {"precision": precision, "weights": weights, "reference": reference, "threshold": threshold}
            if all(self.done(interval=interval, **key) for interval in chosen):
                continue
            policy = {} if threshold is None else {"policy": {"threshold": threshold}}
            values = {"precision": precision, "weights": weights, "reference": reference, **policy}
            calibrated = self.scratch / folder / CALIBRATED  # ranges do not depend on the threshold
            source = str(calibrated) if calibrated.exists() else self.weights
            _, result = self.test({**values, "interval": max(chosen)}, folder, source)
            for interval in chosen:
                if not self.done(interval=interval, **key):
                    self.add(ResQConfig.from_dict(values), result, interval)


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the file keeps it: rounded, and without what its settings tell."""
    found: dict[str, Any] = {
        name: round(value, DIGITS[name]) if name in DIGITS else value
        for name, value in row.items()
        if name in ("scheme", "precision", "weights", "reference", "interval", "threshold", "metric", *DIGITS)
    }
    if row["interval"] == 1:
        found["state_megabytes"] = 0
    if row["scheme"] != "float":
        for name in ("by_distance", "agreement_by_distance"):
            found[f"accuracy_{name}" if name == "by_distance" else name] = [round(value, 2) for value in row[name]]
    return found


def main() -> None:
    """Measure everything that is not in the file yet."""
    options = parser(__doc__, "camvid.json")
    options.add_argument("--quick", action="store_true", help="tensor weights, float reference, T = 3 only")
    options.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    bench = Bench(args)
    if not bench.done(scheme="float"):
        bench.float_row()
    intervals = (3,) if args.quick else INTERVALS
    for setting in settings(args.quick):
        start = time.perf_counter()
        bench.run(setting, intervals)
        console.log(*setting, f"{time.perf_counter() - start:.0f} s")
    shutil.rmtree(bench.scratch)
    console.print(rich_table(bench.rows))
    console.print("written to", str(args.out))


if __name__ == "__main__":
    main()
