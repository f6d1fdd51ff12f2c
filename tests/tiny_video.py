"""A made-up CamVid folder and a small MMSeg config on it, for tests that go through MMEngine's Runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image
from resq_mmengine import mmcv_lite

mmcv_lite.install()

SIZE = (32, 48)
CLASSES = 11


def make_frames(folder: Path, split: str, frames: int, *, sequence: str = "0016E5", start: int = 100) -> None:
    """Write frames of a square that moves by one pixel, with labels, in CamVid's layout."""
    height, width = SIZE
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    for directory in (folder / split, folder / f"{split}annot"):
        directory.mkdir(parents=True, exist_ok=True)
    for time in range(frames):
        image, label = noise.astype(np.uint8), np.zeros((height, width), np.uint8)
        image[8:20, 4 + time : 16 + time] = (200, 120, 40)
        label[8:20, 4 + time : 16 + time] = 8
        label[:2] = 11
        name = f"{sequence}_{start + 2 * time:05}.png"
        Image.fromarray(image).save(folder / split / name)
        Image.fromarray(label).save(folder / f"{split}annot" / name)


def dataset(folder: Path, split: str, **options: Any) -> dict[str, Any]:
    """Config of a `CamVidSequence`."""
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    prefix = {"img_path": split, "seg_map_path": f"{split}annot"}
    return {
        "type": "resq_mmseg.CamVidSequence",
        "data_root": str(folder),
        "data_prefix": prefix,
        "pipeline": pipeline,
        **options,
    }


def model_config(norm: str = "BN") -> dict[str, Any]:
    """A small U-Net of MMSeg."""
    norm_cfg = {"type": norm, "requires_grad": True}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "size": SIZE,
            "pad_val": 0,
            "seg_pad_val": 255,
        },
        "backbone": {
            "type": "UNet",
            "base_channels": 4,
            "num_stages": 2,
            "strides": (1, 1),
            "enc_num_convs": (1, 1),
            "dec_num_convs": (1,),
            "downsamples": (True,),
            "enc_dilations": (1, 1),
            "dec_dilations": (1,),
            "norm_cfg": norm_cfg,
        },
        "decode_head": {
            "type": "FCNHead",
            "in_channels": 4,
            "in_index": 1,
            "channels": 4,
            "num_convs": 1,
            "concat_input": False,
            "dropout_ratio": 0.0,
            "num_classes": CLASSES,
            "norm_cfg": norm_cfg,
            "align_corners": False,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def config(folder: Path, work_dir: Path, **changes: Any) -> Config:
    """A complete config; ``changes`` are dotted keys with ``__`` for the dot."""
    loader = {
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "resq_mmengine.ClipSampler"},
        "dataset": dataset(folder, "val"),
    }
    calibration = {"samples": 4, "candidates": 5, "recheck": 0, "dataset": dataset(folder, "calib"), "length": 3}
    found = Config(
        {
            "default_scope": "mmseg",
            "work_dir": str(work_dir),
            "log_level": "ERROR",
            "randomness": {"seed": 0},
            "model": model_config(),
            "test_cfg": {"type": "TestLoop"},
            "test_dataloader": loader,
            "test_evaluator": [{"type": "IoUMetric", "iou_metrics": ["mIoU"], "prefix": "seg"}],
            "resq": {"precision": "W8A8->W4A4", "interval": 3, "calibration": calibration},
            "default_hooks": {"resq": {"type": "resq_mmengine.ResQHook", "priority": "VERY_HIGH"}},
        }
    )
    found.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    return found
