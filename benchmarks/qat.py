"""What training through time gives: DDRNet-23-slim on CamVid; frame quantization, ResQ and Dynamic-ResQ alike.

Each row is converted and calibrated as in `camvid.py` (channel weights, float reference), trained by
`resq_plugin.training` on intervals that a random camera films on the stills of camvid/train and, a third of them, on
real clips of camvid/calib, for which the float net alone is the teacher (camvid/val is never seen); then measured on
camvid/val by the paper's protocol. Every row has the same budget of steps, clips and settings.

    uv run --group dev python benchmarks/qat.py --threads 1 --runs FOLDER  # resumes where it stopped, even in a row
    uv run --group dev python benchmarks/qat.py --rows "W4A4->W3A3" --steps 2
    uv run --group dev python benchmarks/qat.py --plan 0.107         # a plan that search.py found, trained likewise
"""

from __future__ import annotations

import json
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, accuracy, calibration_clips, camvid, ddrnet, machine, parser, require, segment, write
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, load_checkpoint, measure_cost, save_checkpoint
from resq_plugin.evaluation import Evaluation, float_predictions
from resq_plugin.files import json_text
from resq_plugin.training import Camera, StillClips, TrainConfig, train

ROWS = {  # precision to T; the most wanted first
    "W4A4->W3A3": 3,
    "W4A4": 3,
    "W4A4->W3A{0,3}": 4,
    "W8A8->W4A4": 3,
    "W3A3": 3,
    "W4A4->W4A{0,2,4}": 4,
    "W3A3->W2A2": 3,
}
FARTHEST = {"W4A4->W3A3": 10, "W8A8->W4A4": 10}
"""T up to which accuracy by distance is measured after training (Fig. 9); else the row's own."""
FRONTS = ("front_resq", "front_resq_t10")
PLAN_TRAINED = 4
"""T in the training of a plan: every fourth frame of it is as far from the keyframe as the 12th of a video."""
SHAPE = (1, 3, 360, 480)
IGNORED = 11


@dataclass(frozen=True)
class Row:
    """What is trained and measured.

    Attributes:
        name: precision or plan.
        config: of the model.
        trained: T in training.
        interval: T in use.
        farthest: T up to which accuracy by distance is measured.
    """

    name: str
    config: ResQConfig
    trained: int
    interval: int
    farthest: int


class Segmenter(nn.Module):
    """DDRNet without what it does in training mode only: its auxiliary head, and statistics of batch norms."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode of this module alone."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, frame: Tensor) -> Tensor:
        """Return class scores (N, 11, H/8, W/8) of frames (N, 3, H, W)."""
        scores: Tensor = self.network(frame)
        return scores


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Loss () of scores (N, 11, h, w) and labels (N, H, W), at half of their resolution to save time."""
    labels = labels[:, ::2, ::2]
    half = F.interpolate(scores.float(), labels.shape[-2:], mode="bilinear", align_corners=False).contiguous()
    losses = F.cross_entropy(half, labels, ignore_index=IGNORED, reduction="none")
    return losses.sum() / (labels != IGNORED).sum().clamp_min(1)  # clips without labels: 0, not NaN


class Clips:
    """Labelled stills under a random camera, and windows of real video without labels, a third of every pass.

    Args:
        stills: intervals of photographs.
        video: consecutive frames (1, 3, H, W).
        length: T.
        seed: of everything random.
    """

    def __init__(self, stills: StillClips, video: list[Tensor], length: int, seed: int) -> None:
        self.stills, self.video, self.length, self.seed, self.epoch = stills, torch.cat(video), length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin another pass over the data."""
        self.stills.set_epoch(epoch)
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.stills) * 3 // 2

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index < len(self.stills):
            return self.stills[index]
        source = random.Random(f"{self.seed}/{self.epoch}/{index}")
        size = self.stills.camera.size
        # Every frame, every second or every fourth: residuals as far from the keyframe as in longer intervals.
        stride = source.choice([n for n in (1, 2, 4) if (self.length - 1) * n < len(self.video)])
        first = source.randrange(len(self.video) - (self.length - 1) * stride)
        top, left = (source.randrange(full - part + 1) for full, part in zip(self.video.shape[-2:], size, strict=True))
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        frames = self.video[first : first + (self.length - 1) * stride + 1 : stride, :, rows, columns]
        if source.random() < 0.5:
            frames = frames.flip(-1)
        return frames.clone(), torch.full((self.length, *size), IGNORED, dtype=torch.long)


class Bench:
    """Data, and what was measured so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.weights = require(args.data / "weights" / "ddrnet23slim_camvid.pth")
        images, labels = camvid(args.data, "train")
        # Clips must not depend on how torch lays out memory.
        self.images, self.labels = [image[0] for image in images], [label[0] for label in labels]
        self.frames, annotations = camvid(args.data, "val")
        self.video = camvid(args.data, "calib")[0]
        self.calib = calibration_clips(self.video)
        self.targets: dict[str, Any] = {"mIoU": [annotations]}
        kept = json.loads(args.out.read_text()) if args.out.exists() else {}
        self.rows: list[dict[str, Any]] = kept.get("rows", [])
        self.stills: dict[str, Any] | None = kept.get("stills")
        network = ddrnet()
        self.base = measure_cost(network, SHAPE, ResQConfig.parse("W8A8")).bops_per_frame

    @staticmethod
    def key(row: dict[str, Any]) -> tuple[str, int, str]:
        """What tells rows apart."""
        return row["precision"], row["steps"], row["reference"]

    def write(self) -> None:
        """Write all that is known so far."""
        about = (
            "CamVid val, 36 frames, 480x360; trained on stills of CamVid train and unlabelled clips of calib, 4 "
            "intervals of 256x256 a step"
        )
        write(self.args.out, {"data": about, "machine": machine(), "rows": self.rows, "stills": self.stills})

    def measure(self, model: nn.Module, interval: int) -> Evaluation:
        """Accuracy and agreement on camvid/val at every position."""
        model.eval()
        if "agreement" not in self.targets:  # made by the first model, before it is trained
            self.targets["agreement"] = float_predictions(model, [self.frames], segment)
        return accuracy(model, self.frames, self.targets, interval)

    def uniform(self, precision: str) -> Row:
        """A row of one precision for all layers."""
        interval = ROWS.get(precision, 3)
        settings = {"interval": interval, "weights": "channel", "reference": self.args.reference}
        shown = interval if "->" in precision else 1
        config = ResQConfig.parse(precision, **settings)
        return Row(precision, config, interval, shown, FARTHEST.get(precision, shown))

    def plan(self, share: float) -> Row:
        """The plan on the fronts of search.json whose predicted share of W8A8 is nearest."""
        found = json.loads(require(ROOT / "benchmarks" / "results" / "search.json").read_text())
        points = [point for key, front in found.items() if key in FRONTS for point in front]
        point = min(points, key=lambda point: abs(point["relative"] - share))
        values = point["config"]
        # Names of search.py's layers are those of the network, which is a part of the model here.
        values["overrides"] = {f"network.{name}": value for name, value in values["overrides"].items()}
        values["exclude"] = [f"network.{name}" for name in values["exclude"]]
        thresholds = {f"network.{name}": value for name, value in values["policy"]["thresholds"].items()}
        values["policy"] = values["policy"] | {"thresholds": thresholds}
        config = ResQConfig.from_dict(values)
        name = f"plan of {100 * point['relative']:.1f} %, T = {config.interval}"
        return Row(name, config, PLAN_TRAINED, config.interval, config.interval)

    def make(self, row: Row, folder: Path) -> Segmenter:
        """The calibrated model that training starts from."""
        kept = folder / "calibrated.pt"
        torch.manual_seed(0)
        model = Segmenter(ddrnet(self.weights)).eval()
        convert(model, row.config)
        if kept.exists():
            load_checkpoint(model, kept)
        else:
            calibrate(model, self.calib)
            save_checkpoint(model, kept)
        return model

    def run(self, row: Row, more: int) -> None:
        """Measure, train, measure.

        Args:
            row: what is trained.
            more: steps at a quarter of the rate that follow on a row which was trained before; its own row.
        """
        args, clock = self.args, time.perf_counter()
        precision, interval, shown, reference = row.name, row.trained, row.interval, row.config.reference
        folder = args.runs / "".join(letter for letter in precision + reference if letter.isalnum())
        folder.mkdir(parents=True, exist_ok=True)
        model = self.make(row, folder)
        found = folder / "before.json"
        if not found.exists():
            before = self.measure(model, shown)
            write(found, {"mIoU": before.by_distance["mIoU"], "agreement": before.by_distance["agreement"]})
        elif "agreement" not in self.targets:
            self.targets["agreement"] = float_predictions(model, [self.frames], segment)
        start = json.loads(found.read_text())
        print(precision, "before", start["mIoU"], f"{time.perf_counter() - clock:.0f} s", flush=True)

        config = TrainConfig(
            steps=more or args.steps,
            batch=4,
            intervals=(interval,),
            autocast="bfloat16",
            distill="logits",
            lr=args.lr / 4 if more else args.lr,
            scale_lr=args.scale_lr / 4 if more else args.scale_lr,
            warmup=5 if more else 20,
            seed=args.seed + bool(more),
            save_every=20,
        )
        if more:
            load_checkpoint(model, folder / "trained.pt")
            folder = folder / "more"
        model.to(memory_format=torch.channels_last)
        stills = StillClips(self.images, self.labels, length=interval, seed=config.seed, camera=camera())
        clips = Clips(stills, self.video, interval, config.seed)
        log = Log(folder / "log.jsonl")
        result = train(model, clips, cross_entropy, config, folder=folder, on_step=log)
        save_checkpoint(model, folder / "trained.pt")
        after = self.measure(model.to(memory_format=torch.contiguous_format), row.farthest)
        own = after.until(shown)
        cost = measure_cost(model, SHAPE, row.config.replace(interval=shown), own.bit_shares).bops_per_frame
        steps = args.steps + more
        own_key = precision, steps, reference
        self.rows = [old for old in self.rows if self.key(old) != own_key]
        self.rows.append(
            {
                "precision": precision,
                "reference": reference,
                "interval": shown,
                "before": mean(start["mIoU"]),
                "after": mean(own.by_distance["mIoU"]),
                "agreement_before": mean(start["agreement"]),
                "agreement_after": mean(own.by_distance["agreement"]),
                "gbops_per_frame": round(cost / 1e9, 2),
                "relative_bops": round(cost / self.base, 4),
                "before_by_distance": [round(value, 2) for value in start["mIoU"]],
                "after_by_distance": [round(value, 2) for value in after.by_distance["mIoU"]],
                "agreement_by_distance": [round(value, 2) for value in after.by_distance["agreement"]],
                "steps": steps,
                "trained_interval": interval,
                "last_losses": [round(value, 3) for value in result.losses[-5:]],
                "seed": args.seed,
                "lr": args.lr,
                "scale_lr": args.scale_lr,
                **log.minutes(),
            }
        )
        self.write()
        print(json_text(self.rows[-1]), flush=True)


class Log:
    """Loss and time of every step in a file, which a run that is continued goes on writing."""

    def __init__(self, path: Path) -> None:
        self.path, self.wall, self.busy = path, time.perf_counter(), time.process_time()
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: int, values: Any) -> None:
        """Add a step."""
        wall, busy = time.perf_counter(), time.process_time()
        line = {"step": step, "loss": round(values["loss"], 4), "grad_norm": round(values["grad_norm"], 2)}
        line |= {"seconds": round(wall - self.wall, 2), "core_seconds": round(busy - self.busy, 2)}
        self.wall, self.busy = wall, busy
        with self.path.open("a") as file:
            file.write(json_text(line) + "\n")

    def minutes(self) -> dict[str, float]:
        """Time of all steps, on the clock and of the processor."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        last = {line["step"]: line for line in lines}.values()  # those after the last checkpoint were made again
        total = {key: sum(line[key] for line in last) / 60 for key in ("seconds", "core_seconds")}
        return {"minutes": round(total["seconds"], 1), "core_minutes": round(total["core_seconds"], 1)}


def mean(values: Any) -> float:
    """The mean over positions."""
    return round(sum(values) / len(values), 2)


@torch.no_grad()
def residual_deviation(network: nn.Module, clips: list[list[Tensor]]) -> dict[str, list[float]]:
    """Deviation of x_t - x_k over that of x_t in the float net, by layer, for t = 1, 2, ..."""
    inputs: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0]))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    sums: dict[str, list[list[float]]] = {}
    for clip in clips:
        inputs.clear()
        for frame in clip:
            network(frame)
        for name, found in inputs.items():
            ratios = [float((x - found[0]).std() / x.std().clamp_min(1e-12)) for x in found[1:]]
            sums.setdefault(name, []).append(ratios)
    for handle in handles:
        handle.remove()
    return {name: [sum(column) / len(column) for column in zip(*rows, strict=True)] for name, rows in sums.items()}


def compare_stills(bench: Bench) -> dict[str, Any]:
    """Whether clips from stills are like video: residual over frame deviation of both, by layer."""
    network = ddrnet(bench.weights)
    real = [[frame[..., 52:308, 112:368] for frame in clip] for clip in bench.calib[:12]]
    stills = StillClips(bench.images, bench.labels, length=3, camera=camera())
    filmed = [list(stills[index][0].unsqueeze(1)) for index in range(0, 360, 30)]
    layers = {"video": residual_deviation(network, real), "stills": residual_deviation(network, filmed)}
    middle = {
        kind: [round(statistics.median(column), 3) for column in zip(*found.values(), strict=True)]
        for kind, found in layers.items()
    }
    by_layer = {
        name: {kind: [round(value, 3) for value in found[name]] for kind, found in layers.items()}
        for name in layers["video"]
    }
    return {"clips": 12, "median_over_layers": middle, "by_layer": by_layer}


def camera() -> Camera:
    """How stills become clips here: a little livelier than the video (`compare_stills`), for longer intervals too."""
    return Camera(size=(256, 256), shift=3.0, zooming=0.015, ignore=IGNORED)


def main() -> None:
    """Train and measure every row that is not in the file yet."""
    options = parser(__doc__, "qat.json")
    options.add_argument("--rows", nargs="*", default=list(ROWS), help="precisions")
    options.add_argument("--plan", type=float, metavar="SHARE", help="instead: the plan found at that share of W8A8")
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--more", type=int, default=0, help="go on from a trained row for so many steps")
    options.add_argument("--lr", type=float, default=3e-4)
    options.add_argument("--scale-lr", type=float, default=3e-3)
    options.add_argument("--reference", choices=("float", "quantized", "running"), default="float")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--runs", type=Path, default=Path("qat_runs"), help="folder for checkpoints")
    options.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    if bench.stills is None:
        bench.stills = compare_stills(bench)
        bench.write()
    done = set() if args.fresh else {bench.key(row) for row in bench.rows}
    rows = [bench.plan(args.plan)] if args.plan else [bench.uniform(precision) for precision in args.rows]
    for row in rows:
        if (row.name, args.steps + args.more, row.config.reference) not in done:
            bench.run(row, args.more)


if __name__ == "__main__":
    main()
