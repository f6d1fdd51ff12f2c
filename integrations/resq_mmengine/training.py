"""Quantization-aware training through time: an mm model that learns on whole intervals (§5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from resq_mmengine.flat_state import flatten_states
from resq_mmengine.registry import MODELS
from resq_mmengine.sampler import IntervalBatchSampler
from resq_mmengine.settings import read_settings
from resq_plugin import convert, stream
from resq_plugin.errors import ConfigError
from resq_plugin.method import residual_layers

__all__ = ["ResQModel"]

ARCHITECTURE = "architecture."
LINES = (
    "train_dataloader = dict(sampler=dict(_delete_=True, type='resq_mmengine.ClipSampler', shuffle=True), "
    "batch_sampler=dict(type='resq_mmengine.IntervalBatchSampler'))"
)


@MODELS.register_module()
class ResQModel(BaseModel):
    """A converted mm model; its loss is the mean of the losses of the labelled frames of an interval.

    Gradients flow through time, from residual frames into their keyframe. Checkpoints have the names of the wrapped
    model, so that they load into it and the other way round. Write it inside ``model``, because the optimizer is built
    right after the model: ``model = dict(_delete_=True, type='resq_mmengine.ResQModel', architecture=_base_.model,
    resq=dict(precision='W8A8->W4A4', interval=3))``, with `ResQHook` in ``default_hooks`` and ``resq = None``.

    Args:
        architecture: config of the mm model.
        resq: settings, see `read_settings`.
        learn_ranges: train the activation scales, too; else they stay as calibrated.
        data_preprocessor: that of the architecture by default.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        resq: Mapping[str, Any],
        *,
        learn_ranges: bool = False,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        from mmengine.registry import MODELS as ALL_MODELS  # noqa: PLC0415

        model = ALL_MODELS.build(dict(architecture))
        super().__init__(data_preprocessor=data_preprocessor or model.data_preprocessor, init_cfg=init_cfg)
        del self._modules["data_preprocessor"]
        settings = read_settings(resq)
        if settings is None or settings.config.residual is None:
            msg = "ResQModel needs a residual precision; write resq=dict(precision='W8A8->W4A4', interval=3)."
            raise ConfigError(msg)
        self.settings = settings
        self.architecture = convert(model, settings.config)
        flatten_states(model)
        for layer in residual_layers(model).values():
            for quantizer in layer.activation_quantizers().values():
                if isinstance(quantizer, torch.nn.Module):
                    quantizer.requires_grad_(learn_ranges)
        self._register_load_state_dict_pre_hook(_add_prefix)
        self.register_state_dict_post_hook(_drop_prefix)

    @property
    def data_preprocessor(self) -> Any:
        """That of the architecture."""
        return self.architecture.data_preprocessor

    @property
    def interval(self) -> int:
        """T."""
        return self.settings.config.interval

    def check_training_data(self, loader: Any) -> None:
        """Check that a dataloader yields whole intervals.

        Raises:
            ConfigError: it does not; the message has the lines to write.
        """
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
        losses: list[dict[str, Any]] = []
        with stream(self.architecture) as video:
            for start in range(0, len(inputs), size):
                samples = data_samples[start : start + size]
                labelled = samples[0].metainfo.get("labelled", True)
                output = video(inputs[start : start + size], samples, mode="loss" if labelled else "tensor")
                if labelled:
                    losses.append(output)
        return {key: _mean([loss[key] for loss in losses]) for key in losses[0]}

    def init_weights(self) -> None:
        """Initialize the architecture."""
        self.architecture.init_weights()


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
