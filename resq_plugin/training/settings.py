"""Every setting of training through time, each with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resq_plugin.errors import ConfigError, nearest

__all__ = ["TrainConfig"]

_CHOICES = {
    "activation_scales": ("learned", "fixed"),
    "weight_scales": ("learned", "fixed"),
    "batch_norm": ("frozen", "live"),
    "distill": ("off", "logits", "features"),
    "autocast": ("off", "bfloat16", "float16"),
    "schedule": ("cosine", "constant"),
}
_WHOLE = {"steps": 1, "batch": 1, "accumulate": 1, "warmup": 0, "workers": 0, "seed": 0, "save_every": 1}
_NUMBERS = ("lr", "scale_lr", "clip_norm", "distill_weight", "temperature", "ema", "weight_decay")


@dataclass(frozen=True)
class TrainConfig:
    """How a converted and calibrated model is trained on intervals.

    Attributes:
        steps: optimizer steps.
        batch: intervals per step and process; of several processes each takes its share of ``batch`` times their
            number.
        accumulate: parts of ``batch`` intervals whose gradients are summed up to one step, where memory is short.
        intervals: T; of several one is drawn per step, for one model that serves them all.
        truncate: stop gradients at the keyframe and go backward after every frame. Memory is then that of one frame
            whatever T, but a keyframe no longer learns what its residual frames need.
        checkpointing: keep the inputs of each frame only and compute the frame again on the way back: a third more
            time, and memory hardly grows with T.
        autocast: type of convolutions; ``bfloat16`` halves time and memory where the processor knows it, and keeps
            integers up to 8 bits exact. ``float16`` scales the loss.
        lr: learning rate of weights, 5e-4 with Adam.
        scale_lr: learning rate of scales, relative to their value: layers differ by orders of magnitude, so that one
            absolute rate would hold some still and throw others about.
        weight_decay: of weights, never of scales.
        schedule: ``cosine`` decays to zero over ``steps``: rounding needs small steps at the end; or ``constant``.
        warmup: steps over which the rate rises first, while Adam's averages are young.
        clip_norm: largest norm of all gradients together; an interval of T frames sums T times rounding noise.
            0 switches it off.
        activation_scales: ``learned`` as in LSQ, or ``fixed`` as calibrated.
        weight_scales: ``learned`` from Eq. 7 on: at 2 to 4 bits minimum and maximum waste the grid on outliers; or
            ``fixed``: Eq. 7 of the weights of every step (AIMET and Brevitas: as calibrated).
        batch_norm: ``frozen`` statistics, which a folded batch norm needs; ``live`` updates those of batch norms that
            could not be folded.
        distill: what the float model teaches: ``off``, its ``logits`` (KL divergence), which also teaches on frames
            without a label, or its ``features`` (outputs of the modules named in ``features``), which reaches early
            layers more directly.
        features: qualified names of modules whose outputs ``distill='features'`` compares, or whose class scores
            ``distill='logits'`` does, when they are not what the model returns.
        distill_weight: factor of that loss.
        temperature: softens both distributions of the KL divergence.
        ema: decay of the averaged weights, which are what remains at the end; 0 keeps the last ones.
        seed: of the order of clips, T and everything random in them; a step's data depends on it and the step alone.
        workers: processes that load clips.
        save_every: steps between checkpoints, if a folder is given.
    """

    steps: int = 300
    batch: int = 4
    accumulate: int = 1
    intervals: tuple[int, ...] = (3,)
    truncate: bool = False
    checkpointing: bool = False
    autocast: str = "off"
    lr: float = 5e-4
    scale_lr: float = 1e-2
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    clip_norm: float = 5.0
    activation_scales: str = "learned"
    weight_scales: str = "learned"
    batch_norm: str = "frozen"
    distill: str = "off"
    features: tuple[str, ...] = ()
    distill_weight: float = 1.0
    temperature: float = 1.0
    ema: float = 0.0
    seed: int = 0
    workers: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            value = getattr(self, key)
            if value not in allowed:
                msg = f"{key}={value!r} is not allowed; write one of {', '.join(map(repr, allowed))}."
                raise ConfigError(msg + nearest(str(value), allowed))
        for key, low in _WHOLE.items():
            _at_least(key, getattr(self, key), low)
        for key in _NUMBERS:
            value = getattr(self, key)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
                msg = f"{key}={value!r} is not allowed; write a number of at least 0."
                raise ConfigError(msg)
        if self.temperature == 0 or self.ema >= 1:
            msg = f"temperature={self.temperature} must be above 0 and ema={self.ema} below 1, e.g. ema=0.99."
            raise ConfigError(msg)
        for key in ("intervals", "features"):
            value = getattr(self, key)
            if not isinstance(value, (list, tuple)):
                msg = (
                    f"{key}={value!r} must be a list, e.g. {key}={'(3,)' if key == 'intervals' else repr(('head',))}."
                )
                raise ConfigError(msg)
            object.__setattr__(self, key, tuple(value))
        if not self.intervals:
            msg = "intervals is empty; write the lengths T to train on, e.g. intervals=(3,)."
            raise ConfigError(msg)
        for value in self.intervals:
            _at_least("an interval", value, 1)
        if self.distill == "features" and not self.features:
            msg = "distill='features' needs modules to compare; write e.g. features=('backbone',)."
            raise ConfigError(msg)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read plain values.

        Raises:
            ConfigError: unknown key (the nearest allowed one is named), or an impossible value.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        for key in values:
            if key not in names:
                msg = f"unknown setting {key}.{nearest(key, names)} Allowed are {', '.join(sorted(names))}."
                raise ConfigError(msg)
        return cls(**values)


def _at_least(key: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        msg = f"{key}={value!r} is not allowed; write a whole number of at least {low}."
        raise ConfigError(msg)
