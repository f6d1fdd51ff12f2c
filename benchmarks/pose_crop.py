"""What a moving crop costs: JHMDB's real sequence with a trained PoseNet, through MMEngine's Runner.

The sequence is brought into JHMDB's layout with links and read by ``resq_mmpose.JhmdbVideo``. Ranges are calibrated
on 13 of its frames, the first or the last, and accuracy is measured on the other 27, at every position of T = 3.
PCK@0.2 is that of MMPose's ``JhmdbPCKAccuracy`` over the 12 limb joints, by the box of the joints. Agreement is the
share of joints within 0.05 of where the float model sees them on the same crop; float is the float model's own PCK on
the crops of that row. The residual is ‖x_t - x_k‖ / ‖x_k‖ of the input crops.

    uv run --group dev python benchmarks/pose_crop.py        # about five minutes on one core; resumes where it stopped
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from common import machine, parser, require, write
from resq_mmengine import mmcv_lite
from rich.console import Console
from rich.table import Table

mmcv_lite.install()

from mmengine.config import Config  # noqa: E402
from mmengine.registry import DATASETS, METRICS, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmpose.evaluation.metrics import JhmdbPCKAccuracy  # noqa: E402
from posenet import load_weights  # noqa: E402
from resq_mmengine.clips import clips_of, intervals_to_measure  # noqa: E402

VIDEO = "Goal_Keeping_Tips_catch_f_cm_np1_fr_med_2"
ACTION = "catch"
FRAMES = 40
FOLDS = {"first": range(13), "last": range(27, FRAMES)}
"""Frames that calibrate; the others are measured."""
SIZE = (257, 257)
INTERVAL = 3
CROPS = ("interval", "clip", "frame")
FRAME, RESQ = ("W8A8", "W8A4", "W4A4"), ("W8A8->W8A4", "W8A8->W4A4")
Setting = tuple[str, str | None, str, str]  # crop, precision, weights, fold
LIMBS = ("Sho", "Elb", "Wri", "Hip", "Knee", "Ank")


@METRICS.register_module()
class FloatPCK(JhmdbPCKAccuracy):
    """PCK of the float model on the same crops."""

    default_prefix = "float"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Take the float predictions that the hook left in the samples."""
        of_float = [s | {"pred_instances": s["float_prediction"]["pred_instances"]} for s in data_samples]
        super().process(data_batch, of_float)


def layout(data: Path, folder: Path) -> Path:
    """Link the sequence into the layout of JHMDB."""
    links = {
        folder / "Rename_Images" / ACTION / VIDEO: data / "jhmdb" / VIDEO,
        folder / "joint_positions" / ACTION / VIDEO / "joint_positions.mat": data / "jhmdb" / "joint_positions.mat",
    }
    for link, target in links.items():
        link.parent.mkdir(parents=True)
        link.symlink_to(require(target))
    (folder / "splits").mkdir()
    (folder / "splits" / f"{ACTION}_test_split1.txt").write_text(f"{VIDEO}.avi 2\n")
    return folder


def dataset(root: Path, crop: str, frames: list[int]) -> dict[str, Any]:
    return {
        "type": "resq_mmpose.JhmdbVideo",
        "data_root": str(root),
        "crop": crop,
        "padding": 0.0,
        "indices": frames,
        "test_mode": True,
        "pipeline": [
            {"type": "LoadImage"},
            {"type": "GetBBoxCenterScale", "padding": 1.5},
            {"type": "TopdownAffine", "input_size": SIZE},
            {"type": "PackPoseInputs"},
        ],
    }


def measured(fold: str) -> list[int]:
    return [frame for frame in range(FRAMES) if frame not in FOLDS[fold]]


def config(root: Path, setting: Setting) -> Config:
    crop, precision, weights, fold = setting
    settings = None
    if precision is not None:
        clips = {"dataset": dataset(root, crop, list(FOLDS[fold])), "length": INTERVAL, "step": 1}
        settings = {"precision": precision, "interval": INTERVAL, "weights": weights, "calibration": clips}
    options = {"thr": 0.2, "norm_item": "bbox"}
    metrics = [{"type": "JhmdbPCKAccuracy", **options}]
    if precision is not None:
        metrics += [{"type": "resq_mmpose.JointAgreement"}, {"type": "FloatPCK", **options}]
    normalization = {"mean": [127.5] * 3, "std": [127.5] * 3, "bgr_to_rgb": True}
    return Config(
        {
            "default_scope": "mmpose",
            "log_level": "ERROR",
            "work_dir": str(root / "work"),
            "model": {
                "type": "TopdownPoseEstimator",
                "data_preprocessor": {"type": "PoseDataPreprocessor", **normalization},
                "backbone": {"type": "PoseNetTrunk"},
                "head": {"type": "PoseNetHead"},
                "test_cfg": {"flip_test": False},
            },
            "test_dataloader": {
                "batch_size": 1,
                "num_workers": 0,
                "sampler": {"type": "resq_mmengine.ClipSampler"},
                "dataset": dataset(root, crop, measured(fold)),
            },
            "test_cfg": {},
            "test_evaluator": metrics,
            "resq": settings,
            "default_hooks": {"resq": {"type": "resq_mmengine.ResQHook", "priority": "VERY_HIGH"}},
        }
    )


def measure(root: Path, setting: Setting, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Run one setting through the Runner."""
    crop, precision, weights, fold = setting
    runner = Runner.from_cfg(config(root, setting))
    runner.model.load_state_dict(state)
    found = runner.test()

    def pck(prefix: str = "", suffix: str = "") -> float:
        return round(100 * sum(found[f"{prefix}{limb} PCK{suffix}"] for limb in LIMBS) / len(LIMBS), 2)

    residual = precision is not None and "->" in precision
    row = {"scheme": "float" if precision is None else "resq" if residual else "frame", "precision": precision}
    row |= {
        "weights": weights,
        "crop": crop,
        "calibrated_on": fold,
        "interval": INTERVAL if residual else 1,
        "accuracy": pck(),
        "metric": "PCK@0.2",
    }
    row["agreement"] = round(found["agreement"], 2) if precision else 100.0
    if precision:
        row["float_accuracy"] = pck("float/")
        row["gbops_per_frame"] = round(found["resq/gbops_per_frame"], 2)
    if residual:
        row["accuracy_by_distance"] = [pck(suffix=f"_t{t}") for t in range(INTERVAL)]
        row["agreement_by_distance"] = [round(found[f"agreement_t{t}"], 2) for t in range(INTERVAL)]
    return row


def input_residual(root: Path, crop: str, fold: str) -> float:
    """Mean of ‖x_t - x_k‖ / ‖x_k‖ over the residual frames, x the normalized crop."""
    frames = DATASETS.build(dataset(root, crop, measured(fold)))
    intervals = [part for clip in clips_of(frames) for part in intervals_to_measure(clip, INTERVAL)]
    ratios = []
    for interval in intervals:
        keyframe, *others = (frames[index]["inputs"].float() / 127.5 - 1 for index in interval)
        ratios += [float((frame - keyframe).norm() / keyframe.norm()) for frame in others]
    return round(sum(ratios) / len(ratios), 3)


def settings() -> list[Setting]:
    """Return every row of the table. Folded depthwise weights need a scale per channel; one row shows it."""
    rows: list[Setting] = [("frame", precision, "channel", "first") for precision in (None, *FRAME)]
    rows += [("frame", FRAME[0], "tensor", "first")]
    rows += [(crop, precision, "channel", "first") for precision in RESQ for crop in CROPS]
    return rows + [(crop, RESQ[0], "channel", "last") for crop in CROPS]


def main() -> None:
    """Measure every row that is not in the file yet."""
    options = parser(__doc__, "pose_crop.json")
    options.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("resq_plugin").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    init_default_scope("mmpose")
    state = load_weights(require(args.data / "weights" / "posenet_mobilenetv1.pth"))
    known = [] if args.fresh or not args.out.exists() else json.loads(args.out.read_text())["rows"]
    done = {(row["crop"], row["precision"], row["weights"], row["calibrated_on"]): row for row in known}
    data = f"JHMDB {VIDEO}, crops {SIZE[0]}x{SIZE[1]}, T = {INTERVAL}"
    head = {"data": data, "net": "PoseNet MobileNetV1-0.75", "machine": machine()}
    table = Table(
        "scheme", "precision", "weights", "crop", "fold", "residual", "float", "PCK@0.2", "agreement %", "GBOPs"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = layout(args.data, Path(folder))
        for setting in settings():
            if setting not in done:
                done[setting] = measure(root, setting, state)
                if done[setting]["scheme"] == "resq":
                    done[setting]["input_residual"] = input_residual(root, setting[0], setting[3])
                write(args.out, head | {"rows": [done[known] for known in settings() if known in done]})
            row = done[setting]
            names = (
                "scheme",
                "precision",
                "weights",
                "crop",
                "calibrated_on",
                "input_residual",
                "float_accuracy",
                "accuracy",
            )
            values = [row.get(name) for name in (*names, "agreement", "gbops_per_frame")]
            table.add_row(*["" if value is None else str(value) for value in values])
    Console().print(table)


if __name__ == "__main__":
    main()
