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
from rich.table import Table

from resq_plugin import ResQConfig, convert, measure_cost, revert
from resq_plugin.evaluation import Evaluation

RECIPE = ROOT / "integrations/resq_mmseg/configs/camvid/resq_ddrnet_23-slim_w8a8-w4a4_camvid-360x480.py"
INTERVALS = (2, 3, 4, 6, 8)
FRAME = ("W8A8", "W4A8", "W8A4", "W4A4")
STATIC = ("W8A8->W8A4", "W8A8->W4A4", "W4A4->W3A3")
DYNAMIC = ("W8A8->W8A{0,4,8}", "W8A8->W4A{0,4,8}")
THRESHOLDS = (0.1, 0.3)
SWEPT_THRESHOLD = 0.1
"""The other one is measured at T = 3 only, to keep the whole run under an hour."""
SHAPE = (1, 3, 360, 480)

Setting = tuple[str, str, str]  # precision, weights, reference


def settings(quick: bool) -> list[Setting]:
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
        self.base_gbops = measure_cost(self.network, SHAPE, ResQConfig.parse("W8A8")).bops_per_frame / 1e9

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

    def add(self, scheme: str, config: ResQConfig, result: Evaluation, interval: int, threshold: float | None) -> None:
        """Add the row of one interval and write the file."""
        result = result.until(interval)
        convert(self.network, config)
        cost = measure_cost(self.network, SHAPE, config.replace(interval=interval), **result.amortized())
        revert(self.network)
        gbops = cost.bops_per_frame / 1e9
        self.rows.append(
            {
                "scheme": scheme,
                "precision": config.notation,
                "weights": config.weights,
                "reference": config.reference,
                "interval": interval,
                "threshold": threshold,
                "accuracy": round(result.mean("mIoU"), 2),
                "metric": "mIoU",
                "agreement": round(result.mean("agreement"), 2),
                "gbops_per_frame": round(gbops, 2),
                "relative_bops": round(gbops / self.base_gbops, 4),
                "accuracy_by_distance": [round(value, 2) for value in result.by_distance["mIoU"]],
                "agreement_by_distance": [round(value, 2) for value in result.by_distance["agreement"]],
                "state_megabytes": round(cost.state_bytes / 1e6, 1) if interval > 1 else 0,
            }
        )
        self.write()

    def write(self) -> None:
        """Write all rows."""
        write(self.args.out, {"data": "CamVid val, 36 frames, 480x360", "machine": machine(), "rows": self.rows})

    def float_row(self) -> None:
        """Add the float model."""
        metrics, _ = self.test(None, "float", self.weights)
        gbops = measure_cost(self.network, SHAPE).bops_per_frame / 1e9
        row = {"scheme": "float", "precision": "W32A32", "weights": "", "reference": "", "interval": 1}
        row |= {"threshold": None, "accuracy": float(metrics["mIoU"]), "metric": "mIoU", "agreement": 100.0}
        row |= {"gbops_per_frame": round(gbops, 2), "relative_bops": round(gbops / self.base_gbops, 4)}
        row |= {"state_megabytes": 0}
        self.rows.append(row)
        self.write()

    def run(self, setting: Setting, intervals: tuple[int, ...]) -> None:
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
                    self.add(scheme, ResQConfig.from_dict(values), result, interval, threshold)


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("scheme", "precision", "weights", "reference", "T", "τ", "mIoU", "agreement %", "GBOPs", "of W8A8")
    for row in rows:
        values = [row[name] for name in ("scheme", "precision", "weights", "reference", "interval", "threshold")]
        numbers = f"{row['accuracy']:.1f}", f"{row['agreement']:.1f}", f"{row['gbops_per_frame']:.1f}"
        table.add_row(*["" if v is None else str(v) for v in values], *numbers, f"{100 * row['relative_bops']:.0f} %")
    console.print(table)


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
    show(console, bench.rows)
    console.print("written to", str(args.out))


if __name__ == "__main__":
    main()
