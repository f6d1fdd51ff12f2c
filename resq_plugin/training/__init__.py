"""Quantization-aware training through time: intervals, losses, the trainer."""

from __future__ import annotations

from resq_plugin.training.frozen import float_teacher, freeze_batch_norms
from resq_plugin.training.losses import Teacher, distillation_loss, feature_loss
from resq_plugin.training.order import Clips
from resq_plugin.training.ranges import prepare_ranges
from resq_plugin.training.run import TrainResult
from resq_plugin.training.settings import TrainConfig
from resq_plugin.training.still import Camera, StillClips, film
from resq_plugin.training.trainer import train
from resq_plugin.training.unroll import one_step, unroll

__all__ = [
    "Camera",
    "Clips",
    "StillClips",
    "Teacher",
    "TrainConfig",
    "TrainResult",
    "distillation_loss",
    "feature_loss",
    "film",
    "float_teacher",
    "freeze_batch_norms",
    "one_step",
    "prepare_ranges",
    "train",
    "unroll",
]
