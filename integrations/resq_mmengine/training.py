"""Quantization-aware training through time: an mm model that learns on whole intervals (§5)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from operator import methodcaller
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from resq_mmengine.flat_state import flatten_states
from resq_mmengine.registry import MODELS
from resq_mmengine.sampler import IntervalBatchSampler
from resq_mmengine.settings import read_settings
from resq_plugin import convert
from resq_plugin.errors import ConfigError
from resq_plugin.training import (
    Teacher,
    TrainConfig,
    float_teacher,
    freeze_batch_norms,
    one_step,
    prepare_ranges,
    unroll,
)

__all__ = ["ResQModel"]

ARCHITECTURE = "architecture."
LINES = (
    "train_dataloader = dict(sampler=dict(_delete_=True, type='resq_mmengine.ClipSampler', shuffle=True), "
    "batch_sampler=dict(type='resq_mmengine.IntervalBatchSampler'))"
)


OWNED = {
    "steps": "train_cfg.max_iters",
    "batch": "train_dataloader.batch_size",
    "accumulate": "optim_wrapper.accumulative_counts",
    "autocast": "optim_wrapper.type='AmpOptimWrapper'",
    "lr": "optim_wrapper.optimizer",
    "scale_lr": "optim_wrapper.paramwise_cfg",
    "weight_decay": "optim_wrapper.optimizer",
    "schedule": "param_scheduler",
    "warmup": "param_scheduler",
    "clip_norm": "optim_wrapper.clip_grad",
    "ema": "custom_hooks with type='EMAHook'",
    "seed": "randomness",
    "workers": "train_dataloader.num_workers",
    "save_every": "default_hooks.checkpoint.interval",
}
"""Settings of `TrainConfig` that MMEngine has a place for."""


@MODELS.register_module()
class ResQModel(BaseModel):
    """A converted mm model; its loss is the mean of the losses of the labelled frames of an interval.

    Gradients flow through time, from residual frames into their keyframe, as `resq_plugin.training.unroll` lets them.
    Checkpoints have the names of the wrapped model, so that they load into it and the other way round. Write it inside
    ``model``, because the optimizer is built right after the model: ``model = dict(_delete_=True,
    type='resq_mmengine.ResQModel', architecture=_base_.model, resq=dict(precision='W8A8->W4A4', interval=3))``, with
    `ResQHook` in ``default_hooks`` and ``resq = None``. A precision without residuals, such as ``W4A4``, trains
    frame by frame.

    Args:
        architecture: config of the mm model.
        resq: settings, see `read_settings`.
        learn_ranges: train the activation scales, too; else they stay as calibrated.
        training: settings of `resq_plugin.training.TrainConfig` that MMEngine has no place for, e.g.
            ``dict(weight_scales='learned', distill='logits', features=('decode_head.conv_seg',))``.
        data_preprocessor: that of the architecture by default.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        resq: Mapping[str, Any],
        *,
        learn_ranges: bool = False,
        training: Mapping[str, Any] | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        from mmengine.registry import MODELS as ALL_MODELS  # noqa: PLC0415

        model = ALL_MODELS.build(dict(architecture))
        super().__init__(data_preprocessor=data_preprocessor or model.data_preprocessor, init_cfg=init_cfg)
        del self._modules["data_preprocessor"]
        settings = read_settings(resq)
        if settings is None:
            msg = "ResQModel needs a precision; write resq=dict(precision='W8A8->W4A4', interval=3)."
            raise ConfigError(msg)
        if settings.search is not None:
            msg = (
                "resq.search finds a plan of a trained model; run the test of the float model with it, then train "
                "with what plan.py has: model = dict(type='resq_mmengine.ResQModel', resq=dict(precision=..., ...))."
            )
            raise ConfigError(msg)
        self.settings = settings
        self.config = read_training(training, learn_ranges, settings.config.interval)
        self.architecture = convert(model, settings.config)
        flatten_states(model)
        self.__dict__["_ranges"] = prepare_ranges(self.architecture, self.config, calibrated=False)
        self.__dict__["_teacher"] = None
        self.shares: dict[str, dict[int, float]] = {}
        self._register_load_state_dict_pre_hook(_add_prefix)
        self.register_state_dict_post_hook(_drop_prefix)

    @property
    def data_preprocessor(self) -> Any:
        """That of the architecture."""
        return self.architecture.data_preprocessor

    @property
    def interval(self) -> int:
        """T; 1 of a precision without residuals."""
        return self.settings.config.interval if self.settings.config.residual is not None else 1

    def check_training_data(self, loader: Any) -> None:
        """Check that a dataloader yields whole intervals.

        Raises:
            ConfigError: it does not; the message has the lines to write.
        """
        if self.settings.config.residual is None:
            return
        sampler = loader.batch_sampler
        if not isinstance(sampler, IntervalBatchSampler) or not sampler.sampler.shuffle:
            msg = f"training through time needs whole intervals of {self.interval} frames; write {LINES}."
            raise ConfigError(msg)
        if sampler.sampler.length not in (None, self.interval):
            msg = (
                f"ClipSampler has length={sampler.sampler.length}, but the interval is {self.interval}; leave it out."
            )
            raise ConfigError(msg)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Run the architecture; in mode ``loss`` on whole intervals.

        Args:
            inputs: frames (N, C, H, W); in mode ``loss`` (T·N, C, H, W), all first frames first.
            data_samples: one per frame.
            mode: ``tensor``, ``predict`` or ``loss``.
        """
        if mode != "loss":
            return self.architecture(inputs, data_samples, mode=mode)
        size = len(inputs) // self.interval
        if size * self.interval != len(inputs):
            msg = f"{len(inputs)} frames in a training batch are no whole intervals of {self.interval}; write {LINES}."
            raise ConfigError(msg)
        starts = range(0, self._draw_interval() * size, size)
        frames = [inputs[start : start + size] for start in starts]
        samples = [None if data_samples is None else data_samples[start : start + size] for start in starts]
        teacher = self._teacher

        def run(position: int, frame: Tensor) -> tuple[bool, Any, dict[str, Any]]:
            labelled = samples[position][0].metainfo.get("labelled", True)
            mode = "loss" if labelled else "tensor"
            with contextlib.nullcontext({}) if teacher is None else teacher.watching(self.architecture) as seen:
                return labelled, self.architecture(frame, samples[position], mode=mode), seen

        losses: list[dict[str, Any]] = []
        taught: list[Tensor] = []
        self.shares = {}
        config = self.config
        with one_step(self.architecture, residuals=len(frames) > 1):
            outputs = unroll(
                self.architecture,
                frames,
                run=run,
                truncate=config.truncate,
                checkpointing=config.checkpointing,
                shares=self.shares,
            )
            for frame, (labelled, output, seen) in zip(frames, outputs, strict=True):
                if labelled:
                    losses.append(output)
                if teacher is not None:
                    taught.append(teacher.loss(methodcaller("__call__", frame, None, mode="tensor"), output, seen))
        if not losses:
            msg = "no frame of a training batch is labelled; the annotations of its videos are missing."
            raise ConfigError(msg)
        found = {key: _mean([loss[key] for loss in losses]) for key in losses[0]}
        return found | ({"loss_distill": _mean(taught) * config.distill_weight} if taught else {})

    def _draw_interval(self) -> int:
        lengths = self.config.intervals
        drawn = lengths[0] if len(lengths) == 1 else lengths[int(torch.randint(len(lengths), ()))]
        return min(drawn, self.interval)

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """What a visualizer shows of training: trained scales (their mean), and bit shares of the last interval."""
        scales = {f"resq/scale/{layer}/{name}": found.scale() for (layer, name), found in self._ranges.items()}
        shares = {
            f"resq/bits/{layer}/{bits}": share for layer, pool in self.shares.items() for bits, share in pool.items()
        }
        return {name: float(scale.mean()) for name, scale in scales.items()} | shares

    def start_training(self) -> None:
        """Take what the float model teaches from today's weights; `ResQHook` calls it after calibration."""
        if self.config.distill != "off":
            self.__dict__["_teacher"] = Teacher(float_teacher(self.architecture), self.config)

    def train(self, mode: bool = True) -> ResQModel:
        """Set the mode; batch norms keep their statistics unless ``batch_norm='live'``."""
        super().train(mode)
        if mode and self.config.batch_norm == "frozen":
            freeze_batch_norms(self.architecture)
        return self

    def init_weights(self) -> None:
        """Initialize the architecture."""
        self.architecture.init_weights()


def read_training(values: Mapping[str, Any] | None, learn_ranges: bool, interval: int) -> TrainConfig:
    """Read the settings of a `ResQModel`.

    Raises:
        ConfigError: a setting is unknown, impossible, or belongs elsewhere in a mm config, which is named.
    """
    values = dict(values or {})
    for key in values:
        if key in OWNED:
            msg = f"training.{key} is MMEngine's to know; write it as {OWNED[key]}."
            raise ConfigError(msg)
    defaults = {
        "activation_scales": "learned" if learn_ranges else "fixed",
        "weight_scales": "fixed",
        "intervals": (interval,),
    }
    config = TrainConfig.from_dict(defaults | values)
    if max(config.intervals) > interval:
        longest = max(config.intervals)
        msg = f"training.intervals={config.intervals} are longer than the clips; write resq.interval={longest}."
        raise ConfigError(msg)
    return config


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [_mean(list(parts)) for parts in zip(*values, strict=True)]
    return sum(values) / len(values)


def _add_prefix(state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ARG001
    for key in [key for key in state_dict if key.startswith(prefix) and not key.startswith(prefix + ARCHITECTURE)]:
        state_dict[prefix + ARCHITECTURE + key.removeprefix(prefix)] = state_dict.pop(key)


def _drop_prefix(module: Any, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:  # noqa: ARG001
    for key in [key for key in state_dict if key.startswith(prefix + ARCHITECTURE)]:
        state_dict[prefix + key.removeprefix(prefix + ARCHITECTURE)] = state_dict.pop(key)
