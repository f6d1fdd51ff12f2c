"""The fewest bits for an accuracy on real driving video: DDRNet-23-slim on CamVid, plans of `resq_plugin.search`.

Sensitivities and ranges come from the first 16 frames of camvid/calib, the search verifies its plans on the other 16,
whose labels it may see. Plans are then converted, calibrated on both (camvid/calib), and measured once on camvid/val:
every frame at every position t <= T. camvid/val is in no way part of the search. The same search with T = 1 finds the
best mixed-precision frame quantization; one pool {0, 8} everywhere is Skip-Convolution's norm gate. Rows of uniform
precision come from benchmarks/results/camvid.json (`camvid.py`).

    uv run --group dev python benchmarks/search.py --runs FOLDER     # resumes where it stopped
    uv run --group dev python benchmarks/search.py --runs FOLDER --only frame skip   # rows of a part of the table
    uv run --group dev python benchmarks/search.py --runs FOLDER --task pose   # PoseNet; vos: the small STM
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import CLASSES, ROOT, camvid, ddrnet, machine, parser, require, segment, write
from rich.console import Console
from rich.table import Table

from resq_plugin import ResQConfig, Target, calibrate, convert, measure_cost, revert, search
from resq_plugin.calibration import Statistics
from resq_plugin.evaluation import Agreement, MeanIoU, evaluate, float_predictions
from resq_plugin.planning import Point, SearchResult

SHAPE = (1, 3, 360, 480)
T = 16
BITS = (2, 3, 4, 6, 8)
TARGET = Target(
    weight_bits=BITS, activation_bits=BITS, thresholds=(0.03, 0.1, 0.2, 0.4), intervals=(8, T), references=("running",)
)
NEARER = dataclasses.replace(TARGET, intervals=(10,))
"""Accuracy falls far from the keyframe, which a mean of divergences weighs too little: a shorter T is tried, too."""
STILL = Target(weight_bits=BITS, activation_bits=BITS, intervals=(1,))
SKIP = "W8A8->W8A{0,8}"
LEAST, MOST = 0.15, 0.35
"""Shares of W8A8 between which plans of the front are measured."""
BETWEEN = (0.185, 0.168)
"""Predicted shares of W8A8 of plans near the target of 20 %."""
COMMON = {"calibration": {"candidates": 40}}
UNIFORM = (
    ("W8A8", "tensor", 1, None),
    ("W4A8", "channel", 1, None),
    ("W8A8->W4A4", "channel", 8, None),
    ("W8A8->W4A{0,4,8}", "tensor", 8, 0.1),
)


class Bench:
    """The network, its data, and the rows measured so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.network = ddrnet(require(args.data / "weights" / "ddrnet23slim_camvid.pth"))
        frames, labels = camvid(args.data, "calib")
        self.clips, self.held_out = [frames[:T]], [frames[T:]]
        self.labels = [labels[T:]]
        self.val, annotations = camvid(args.data, "val")
        self.targets: dict[str, Any] = {"mIoU": [annotations]}
        self.values: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
        self.values |= {"data": "CamVid val, 36 frames, 480x360, every position", "machine": machine()}
        self.base = measure_cost(self.network, SHAPE, ResQConfig.parse("W8A8")).bops_per_frame
        self.statistics = Statistics()

    def write(self, **more: Any) -> None:
        """Write all that is known."""
        self.values |= more
        write(self.args.out, self.values)

    def search(self, folder: str, target: Target, max_drop: float) -> SearchResult:
        """Search, or read what was found."""
        clock = time.process_time()
        found = search(
            self.network,
            self.clips,
            max_drop=max_drop,
            target=target,
            held_out=self.held_out,
            labels=self.labels,
            metric=("mIoU", lambda: MeanIoU(CLASSES)),
            predict=segment,
            criterion="kl",
            points=3,
            folder=self.args.runs / folder,
            **COMMON,
        )
        key = f"seconds_{folder}"
        self.values[key] = self.values.get(key, 0) + time.process_time() - clock
        self.write(**{f"front_{folder}": found.rows(), f"notes_{folder}": found.notes})
        print(found, flush=True)
        return found

    def measure(self, label: str, config: ResQConfig, found: Point | None = None) -> None:
        """Measure one configuration on val, unless that is done."""
        kept = [row["config"] for row in self.values["rows"] if row["setting"] == label]
        if any(ResQConfig.from_dict(values) == config for values in kept):
            return
        if "agreement" not in self.targets:
            convert(self.network, "W8A8", example=self.val[0])
            self.targets["agreement"] = float_predictions(self.network, [self.val], segment)
            revert(self.network)
        metrics: dict[str, Any] = {"mIoU": lambda: MeanIoU(CLASSES), "agreement": Agreement}
        convert(self.network, config, example=self.val[0])
        calibrate(self.network, [*self.clips, *self.held_out], statistics=self.statistics)
        interval = config.interval if config.residual else 1
        result = evaluate(
            *(self.network, [self.val], self.targets, metrics),
            predict=segment,
            interval=interval,
            every_position=interval > 1,
        )
        cost = measure_cost(self.network, SHAPE, **result.amortized())
        revert(self.network)
        row = {
            "setting": label,
            "precision": config.notation,
            "interval": interval,
            "miou": result.mean("mIoU"),
            "agreement": result.mean("agreement"),
            "gbops_per_frame": cost.bops_per_frame / 1e9,
            "relative_bops": cost.bops_per_frame / self.base,
            "gbops_peak": cost.peak_bops / 1e9,
            "state_megabytes": cost.state_bytes / 1e6,
            "miou_by_distance": result.by_distance["mIoU"],
            "held_out_drop": None if found is None or found.verified is None else found.verified.drop,
            "config": config.to_dict(),
        }
        self.values["rows"] = [old for old in self.values["rows"] if old["setting"] != label] + [row]
        self.write()
        print(label, f"{row['miou']:.2f} mIoU, {row['relative_bops']:.1%}", flush=True)

    def measure_front(self, found: SearchResult, most: int) -> None:
        """Measure plans of a front on val: the one that was found first, then cheaper ones, then finer ones."""
        points = [point for point in found.front if point.verified is not None]
        plan = found.plan.point.verified.relative
        near = [point for point in points if LEAST <= point.verified.relative <= MOST]
        near.sort(key=lambda point: (point.verified.relative > plan, abs(point.verified.relative - plan)))
        for point in near[:most]:
            start = "" if point.config.interval == T else f"T = {point.config.interval}, "
            label = f"search, {start}{point.verified.drop:.2f} points lost on held-out frames"
            self.measure(label, point.config, point)


def uniform(data: Path) -> list[dict[str, Any]]:
    """Rows of uniform precision, which `camvid.py` measured."""
    rows = json.loads(data.read_text())["rows"]
    found = [next(row for row in rows if row["scheme"] == "float")]
    for precision, weights, interval, threshold in UNIFORM:
        wanted = {"precision": precision, "weights": weights, "interval": interval, "threshold": threshold}
        same = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
        found.append(next(row for row in same if row["reference"] == "float"))
    return [
        {
            "setting": f"uniform {row['precision']}, {row['weights'] or 'float'}",
            "precision": row["precision"],
            "interval": row["interval"],
            "miou": row["accuracy"],
            "agreement": row["agreement"],
            "gbops_per_frame": row["gbops_per_frame"],
            "relative_bops": row["relative_bops"],
            "state_megabytes": row["state_megabytes"],
        }
        for row in found
    ]


def correlation(points: list[Point]) -> float:
    """Spearman's rank correlation of predicted and measured divergence."""
    known = [point for point in points if point.verified is not None]
    predicted, measured = [p.error for p in known], [p.verified.divergence for p in known if p.verified]
    return statistics.correlation(ranks(predicted), ranks(measured))


def ranks(values: list[float]) -> list[float]:
    """Place of each value in their order."""
    order = sorted(values)
    return [float(order.index(value)) for value in values]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("setting", "most layers", "T", "mIoU", "agreement %", "GBOPs", "of W8A8", "state MB")
    for row in sorted(rows, key=lambda row: -row["relative_bops"]):
        numbers = f"{row['miou']:.1f}", f"{row['agreement']:.1f}", f"{row['gbops_per_frame']:.1f}"
        more = f"{100 * row['relative_bops']:.1f} %", f"{row['state_megabytes']:.0f}"
        table.add_row(row["setting"], row["precision"], str(row["interval"]), *numbers, *more)
    Console(width=140).print(table)


def streams(bench: Bench) -> None:
    """Plans with T = 8 or 16."""
    found = bench.search("resq", TARGET, max_drop=0.5)
    verified = len([point for point in found.front if point.verified is not None])
    bench.write(rank_correlation=correlation(list(found.front)), verified=verified)
    bench.measure_front(found, bench.args.plans)


def nearer(bench: Bench) -> None:
    """Plans with T = 10."""
    bench.measure_front(bench.search("resq_t10", NEARER, max_drop=0.5), bench.args.plans)


def still(bench: Bench) -> None:
    """Mixed precision, every frame on its own."""
    found = bench.search("frame", STILL, max_drop=0.5)
    bench.measure_front(found, bench.args.plans)


def skip(bench: Bench) -> None:
    """Skip-Convolution's pool everywhere."""
    common = {"weights": "channel", "keyframe_grid": "unsigned", **COMMON}
    bench.measure("Skip-Convolution, {0,8}", ResQConfig.parse(SKIP, interval=8, policy={"threshold": 0.1}, **common))


def between(bench: Bench) -> None:
    """Plans with T = 10 that the search predicted and did not verify."""
    for share in BETWEEN:
        found = min(bench.values["front_resq_t10"], key=lambda point: abs(point["relative"] - share))
        config = ResQConfig.from_dict(found["config"])
        bench.measure(f"search, T = 10, {100 * found['relative']:.1f} % predicted", config)


def more_task(args: Any) -> None:
    """Search for a net of another task, and keep its rows under the name of the task."""
    task = importlib.import_module(f"search_{args.task}")

    def known() -> dict[str, Any]:
        return json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}

    def save(values: dict[str, Any]) -> None:
        write(args.out, known() | {args.task: values})

    task.run(args, save, known().get(args.task, {}))


PARTS = {"streams": streams, "nearer": nearer, "frame": still, "skip": skip, "between": between}


def main() -> None:
    """Search, then measure what was found."""
    options = parser(__doc__, "search.json")
    options.add_argument("--runs", type=Path, required=True, help="folder of the searches' journals")
    options.add_argument("--plans", type=int, default=6, help="plans of the front that are measured on val, at most")
    options.add_argument("--task", choices=("segmentation", "pose", "vos"), default="segmentation")
    options.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="parts of the table")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.task != "segmentation":
        more_task(args)
        return
    bench = Bench(args)
    bench.write(uniform=uniform(ROOT / "benchmarks" / "results" / "camvid.json"))
    for part in args.only:
        PARTS[part](bench)
    show([*bench.values["uniform"], *bench.values["rows"]])


if __name__ == "__main__":
    main()
