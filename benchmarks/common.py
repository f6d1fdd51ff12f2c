"""What the benchmarks share: the data, the trained network, machine facts and JSON files."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from resq_mmengine.zoo import FrameModel, build_model
from torch import Tensor

from resq_plugin.evaluation import Agreement, Evaluation, MeanIoU, evaluate
from resq_plugin.files import write_json

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DATA = ROOT.parent / "shared" / "data"
CONFIG = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
CLASSES = 11
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Return a parser with the options every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with camvid/ and weights/")
    options.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / out, help="JSON file to write")
    options.add_argument("--threads", type=int, default=2)
    return options


def require(path: Path) -> Path:
    """Return the path, or stop and say what is missing."""
    if not path.exists():
        sys.exit(f"{path} is not there; this benchmark needs real data, pass its folder with --data.")
    return path


def machine() -> dict[str, Any]:
    """Facts that a measured number belongs to."""
    listed = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in listed if "model name" in line), platform.processor())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_json(path, values)


def ddrnet(checkpoint: Path | None = None, classes: int = CLASSES) -> torch.nn.Module:
    """DDRNet-23-slim of MMSegmentation as a network from frame to logits, with trained weights if given."""
    logging.getLogger("resq_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build_model(CONFIG, {"model.decode_head.num_classes": classes})
    if checkpoint is not None:
        model.load_state_dict(torch.load(require(checkpoint), weights_only=True)["state_dict"])
    return FrameModel(model).eval()


def camvid(data: Path, split: str) -> tuple[list[Tensor], list[Tensor]]:
    """Frames (1, 3, 360, 480), normalised, and labels (1, 360, 480) of a CamVid folder; label 11 is ignored."""
    folder = require(data / "camvid" / split)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    frames, labels = [], []
    for path in sorted(folder.glob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float()
        # Contiguous, as a data preprocessor makes them: a convolution would take the layout of permuted pixels on.
        frames.append(((pixels - mean) / std).unsqueeze(0).contiguous())
        annotation = path.parent.with_name(f"{split}annot") / path.name
        labels.append(torch.from_numpy(np.array(Image.open(annotation))).long().unsqueeze(0))
    return frames, labels


def calibration_clips(frames: list[Tensor], length: int = 3, step: int = 2) -> list[list[Tensor]]:
    """Overlapping clips of consecutive frames."""
    return [frames[start : start + length] for start in range(0, len(frames) - length + 1, step)]


def segment(logits: Any, size: tuple[int, int] = (360, 480)) -> Tensor:
    """Labels (N, H, W) of the main head's logits, as MMSegmentation makes them."""
    scores = logits[0] if isinstance(logits, (tuple, list)) else logits
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False).argmax(1)


def accuracy(model: torch.nn.Module, frames: list[Tensor], targets: dict[str, Any], interval: int) -> Evaluation:
    """Scores on one video at every position by the paper's protocol: mIoU, and agreement if ``targets`` has it."""
    makers: dict[str, Any] = {"mIoU": lambda: MeanIoU(CLASSES), "agreement": Agreement}
    metrics = {name: makers[name] for name in targets}
    return evaluate(
        *(model, [frames], targets, metrics), predict=segment, interval=interval, every_position=interval > 1
    )
