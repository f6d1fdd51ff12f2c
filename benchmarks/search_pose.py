"""PoseNet on JHMDB's sequence for `search.py --task pose`: plans from one half of its frames, PCK@0.2 on the other.

Then the same with the halves changed over. Plans are verified on ten frames, too few for their labels to tell plans
apart. So all near a share of W8A8 are measured, and the one that a search without labels takes is marked: within 20 %
of W8A8 the one whose heat maps and offsets are nearest to those of the float model.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import machine, require
from mmengine.registry import DATASETS, init_default_scope
from pose_crop import FRAMES, VIDEO, dataset, layout
from posenet import STRIDE, PoseNetHead, PoseNetTrunk, load_weights
from torch import Tensor, nn

from resq_plugin import ResQConfig, Target, calibrate, convert, measure_cost, revert, search
from resq_plugin.evaluation import evaluate
from resq_plugin.planning import Point, SearchResult

SHAPE = (1, 3, 257, 257)
HALF = FRAMES // 2
FOLDS = {"first": range(HALF), "last": range(HALF, FRAMES)}
"""Frames that are searched and calibrated on; the others are measured."""
LENGTH = HALF // 2
"""Frames that sensitivities come from; as many behind them verify."""
BITS = (3, 4, 6, 8)
TARGET = Target(
    weight_bits=BITS,
    activation_bits=BITS,
    thresholds=(0.03, 0.1, 0.2, 0.4),
    intervals=(5, LENGTH),
    references=("running",),
    weights=("channel",),
)
COMMON = {"calibration": {"candidates": 40}}
UNIFORM = (("W8A8", 1, None), ("W8A8->W8A4", 5, None))
LIMBS = slice(3, 15)
"""Shoulders, hips, elbows, knees, wrists, ankles; PoseNet sees no neck and no belly."""
SHARE = 0.23
"""Share of W8A8 on the held-out frames around which plans are looked for."""
WISH = 0.2
"""Share of W8A8 that a plan may take which is chosen without labels."""
LEAST, MOST = 0.12, 0.35
"""Shares of W8A8 between which plans of the front are measured."""


class PoseNet(nn.Module):
    """Crops (N, 3, 257, 257) to joints as means over their heat maps, heat maps and offsets.

    The means have gradients, unlike the maximum that predicts, and are in pixels, as the metric is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = PoseNetTrunk(), PoseNetHead()

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means (N, 17, 2), y before x, heat maps (N, 17, h, w) and offsets (N, 34, h, w)."""
        heat, offsets = self.head(self.backbone(crop))
        sides = [torch.arange(size, device=crop.device) for size in heat.shape[-2:]]
        grid = STRIDE * torch.stack(torch.meshgrid(*sides, indexing="ij"))[:, None]
        places = (offsets.unflatten(1, (2, 17)) + grid).flatten(3)  # (N, 2, 17, h · w)
        weights = heat.flatten(2).softmax(-1)[:, None]
        return (places * weights).sum(-1).transpose(1, 2), heat, offsets


class PCK:
    """Share of visible limb joints within 0.2 of the larger side of the person's box, joints averaged, in percent."""

    def __init__(self, thr: float = 0.2) -> None:
        self.thr = thr
        self.near, self.total = torch.zeros(15), torch.zeros(15)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take joints (1, 15, 2), and those that are right with visibility and size (1, 15, 4)."""
        distance = torch.linalg.vector_norm(prediction - target[..., :2], dim=-1)[0]
        visible = target[0, :, 2] > 0
        self.near += (distance <= self.thr * target[0, :, 3]) & visible
        self.total += visible

    def compute(self) -> float:
        """Return the mean over joints."""
        near, total = self.near[LIMBS], self.total[LIMBS]
        return 100 * float((near[total > 0] / total[total > 0]).mean())


class Same(PCK):
    """The same share against joints (1, 15, 2) of the float model; the person is as large as their box."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take joints, and those of the float model."""
        size = (target[0].amax(0) - target[0].amin(0)).max().expand(1, 15, 1)
        super().update(prediction, torch.cat([target, torch.ones_like(size), size], -1))


@dataclass(frozen=True)
class Data:
    """The sequence, cropped to the union of the person's boxes.

    Attributes:
        frames: crops (1, 3, 257, 257).
        joints: (1, 15, 4), x and y in pixels of the image, whether it is visible, and the larger side of the box.
        center: of the crop in the image (2,).
        scale: its side in pixels of the image.
    """

    frames: list[Tensor]
    joints: list[Tensor]
    center: Tensor
    scale: float


def read(data: Path) -> Data:
    """Read the sequence with the dataset of `pose_crop.py`."""
    frames, joints = [], []
    with tempfile.TemporaryDirectory() as folder:
        samples = DATASETS.build(dataset(layout(data, Path(folder)), "clip", list(range(FRAMES))))
        for index in range(FRAMES):
            sample = samples[index]
            frames.append(sample["inputs"].flip(0)[None].float() / 127.5 - 1)
            right, crop = sample["data_samples"].gt_instances, sample["data_samples"].metainfo
            box = torch.as_tensor(right.bboxes)[0]
            seen = torch.as_tensor(right.keypoints_visible)[..., None]
            size = (box[2:] - box[:2]).max().expand_as(seen)
            joints.append(torch.cat([torch.as_tensor(right.keypoints), seen, size], -1).float())
    return Data(frames, joints, torch.as_tensor(crop["input_center"]), float(crop["input_scale"][0]))


class Bench:
    """The net, the sequence, and what the file holds of this task."""

    def __init__(self, args: Any, save: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> None:
        self.args, self.save, self.values = args, save, {"rows": [], **values}
        self.values |= {"data": f"JHMDB {VIDEO}, crops 257x257, every position", "machine": machine()}
        warnings.simplefilter("ignore")
        init_default_scope("mmpose")
        self.net = PoseNet().eval()
        self.net.load_state_dict(load_weights(require(args.data / "weights" / "posenet_mobilenetv1.pth")))
        self.data = read(args.data)
        self.base = measure_cost(self.net, SHAPE, ResQConfig.parse("W8A8")).bops_per_frame

    def predict(self, output: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Joints (1, 15, 2) in pixels of the image."""
        (found,) = self.net.head.joints_of(*output[1:])
        points = torch.as_tensor(found.keypoints, dtype=torch.float32)
        return (points / SHAPE[-1] - 0.5) * self.data.scale + self.data.center

    def of(self, fold: str, *, other: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Frames and joints of a fold, or those that it leaves to be measured."""
        chosen = [index for index in range(FRAMES) if (index in FOLDS[fold]) != other]
        return [self.data.frames[index] for index in chosen], [self.data.joints[index] for index in chosen]

    def search(self, fold: str, **goal: float) -> SearchResult:
        """Search on one half, or read what was found; another goal verifies other plans of the same front."""
        frames, joints = self.of(fold)
        clock = time.process_time()
        found = search(
            self.net,
            [frames[:LENGTH]],
            **goal,
            target=TARGET,
            held_out=[frames[LENGTH:]],
            labels=[joints[LENGTH:]],
            metric=("PCK@0.2", PCK),
            predict=self.predict,
            agreement=Same,
            criterion="squared",
            points=3,
            folder=self.args.runs / f"pose_{fold}",
            **COMMON,
        )
        key = f"seconds_{fold}"
        self.values[key] = self.values.get(key, 0) + time.process_time() - clock
        known = {json.dumps(row["config"]): row["verified"] for row in self.values.get(f"front_{fold}", ())}
        rows = found.rows()
        for row in rows:
            row["verified"] = row["verified"] or known.get(json.dumps(row["config"]))
        self.values |= {f"front_{fold}": rows, f"notes_{fold}": found.notes}
        self.save(self.values)
        print(found, flush=True)
        return found

    def measure(self, label: str, fold: str, config: ResQConfig | None, point: Point | None = None) -> None:
        """Measure one configuration on the other half, unless that is done."""
        kept = None if config is None else config.to_dict()
        key = {"setting": label, "fold": fold}
        for old in self.values["rows"]:
            if old["config"] == kept and all(old[name] == value for name, value in key.items()):
                return
        frames, joints = self.of(fold, other=True)
        row: dict[str, Any] = {**key, "precision": "float", "interval": 1, "config": kept}
        if config is None:
            pck = PCK()
            with torch.no_grad():
                for frame, right in zip(frames, joints, strict=True):
                    pck.update(self.predict(self.net(frame)), right)
            row["pck"] = pck.compute()
        else:
            row |= self.measured(config, fold, frames, joints)
            known = None if point is None else point.verified
            row["held_out_drop"] = None if known is None else known.drop
            row["held_out_agreement"] = None if known is None else known.agreement
            row["held_out_relative_bops"] = None if known is None else known.relative
        self.values["rows"] = [
            old for old in self.values["rows"] if any(old[name] != value for name, value in key.items())
        ] + [row]
        self.save(self.values)
        print(fold, label, f"{row['pck']:.2f} PCK@0.2", row.get("relative_bops"), flush=True)

    def measured(self, config: ResQConfig, fold: str, frames: list[Tensor], joints: list[Tensor]) -> dict[str, Any]:
        """Convert, calibrate on the fold, and measure other frames."""
        interval = 1 if config.residual is None else config.interval
        convert(self.net, config, example=frames[0])
        try:
            calibrate(self.net, [self.of(fold)[0]])
            found = evaluate(
                *(self.net, [frames], {"PCK": [joints]}, {"PCK": PCK}),
                predict=self.predict,
                interval=interval,
                every_position=interval > 1,
            )
            cost = measure_cost(self.net, SHAPE, **found.amortized())
        finally:
            revert(self.net)
        return {
            "precision": config.notation,
            "interval": interval,
            "pck": found.mean("PCK"),
            "gbops_per_frame": cost.bops_per_frame / 1e9,
            "relative_bops": cost.bops_per_frame / self.base,
            "state_megabytes": cost.state_bytes / 1e6,
            "pck_by_distance": found.by_distance["PCK"],
        }


def run(args: Any, save: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> dict[str, Any]:
    """Search on each half and measure plans of the front on the other.

    Args:
        args: of the command line.
        save: writes what is known of this task.
        values: what the file holds of it.
    """
    bench = Bench(args, save, values)
    for fold in FOLDS:
        bench.measure("float", fold, None)
        for precision, interval, threshold in UNIFORM:
            more: dict[str, Any] = {"weights": "channel", **COMMON}
            if interval > 1:
                more |= {"interval": interval, "reference": "running"}
            if threshold is not None:
                more["policy"] = {"threshold": threshold}
            bench.measure(f"uniform {precision}", fold, ResQConfig.parse(precision, **more))
        fronts = [bench.search(fold, max_drop=1.0).front, bench.search(fold, max_gbops=SHARE * bench.base / 1e9).front]
        points = {json.dumps(p.config.to_dict()): p for front in fronts for p in front if p.verified is not None}
        near = [point for point in points.values() if LEAST <= point.verified.relative <= MOST]
        near.sort(key=lambda p: abs(p.verified.relative - SHARE))
        for point in near[: args.plans]:
            label = f"search, T = {point.config.interval}, {point.verified.relative:.1%} on held-out frames"
            bench.measure(label, fold, point.config, point)
        chosen = bench.search(fold, max_gbops=WISH * bench.base / 1e9).plan.point
        bench.measure("search without labels", fold, chosen.config, chosen)
    return bench.values
