"""The loss of an interval: that of its labelled frames, and what the float model teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resq_plugin.errors import ConfigError, nearest
from resq_plugin.training.settings import TrainConfig
from resq_plugin.training.unroll import unroll

__all__ = ["ClipLoss", "Loss", "Teacher", "distillation_loss", "feature_loss", "first"]

Loss = Callable[[Any, Any], Tensor]


def first(output: Any) -> Tensor:
    """A model's main output: the first of several."""
    found: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return found


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of class scores from the teacher's, the mean over pixels, times the squared temperature.

    Args:
        logits: (N, C, *).
        teacher: the same shape.
        temperature: divides both.
    """
    ours = F.log_softmax(logits.float() / temperature, 1)
    theirs = F.log_softmax(teacher.float() / temperature, 1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean() * temperature**2


def feature_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the teacher's mean square, so that no module counts more than another."""
    features, teacher = features.float(), teacher.float()
    return (features - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)


class Teacher:
    """A frozen float model and what is asked of it.

    Args:
        model: the float model, of the structure of the student.
        config: the settings; ``distill`` is not ``off``.
        logits: output of the model to class scores (N, C, *).

    Raises:
        ConfigError: a module of ``features`` does not exist.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, logits: Callable[[Any], Tensor] = first) -> None:
        self.model, self.config, self.logits = model.eval().requires_grad_(False), config, logits
        modules = dict(model.named_modules())
        for name in config.features:
            if name not in modules:
                msg = f"features has {name!r}, which {type(model).__name__} has not.{nearest(name, modules)}"
                raise ConfigError(msg)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Collect the outputs of the modules named in ``features``."""
        seen: dict[str, Any] = {}
        modules = dict(model.named_modules()) if self.config.features else {}

        def keep(name: str) -> Any:
            return lambda _, __, output: seen.__setitem__(name, output)

        handles = [modules[name].register_forward_hook(keep(name)) for name in self.config.features]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, run: Callable[[nn.Module], Any], output: Any, features: dict[str, Any]) -> Tensor:
        """What one frame costs beside its label.

        Args:
            run: runs the frame on a model.
            output: what the student returned.
            features: what `watching` saw of it.
        """
        with torch.no_grad(), self.watching(self.model) as wanted:
            theirs = run(self.model)
        if self.config.distill == "features":
            losses = [feature_loss(self.logits(features[name]), self.logits(wanted[name])) for name in wanted]
            return torch.stack(losses).mean()
        pairs = [(features[name], wanted[name]) for name in wanted] or [(output, theirs)]
        scores = [(self.logits(ours), self.logits(float_)) for ours, float_ in pairs]
        return torch.stack([distillation_loss(*pair, self.config.temperature) for pair in scores]).mean()


class ClipLoss(nn.Module):
    """A model and its loss on an interval as one module, as DistributedDataParallel needs it.

    Args:
        model: converted and calibrated.
        loss: output and target of one frame to a loss ().
        config: the settings.
        teacher: what the float model teaches, if anything.
    """

    def __init__(self, model: nn.Module, loss: Loss, config: TrainConfig, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.model = model
        self.loss, self.config = loss, config
        self._teacher = [teacher]  # in a list, so that it is no part of the module

    @property
    def teacher(self) -> Teacher | None:
        """What the float model teaches, if anything."""
        return self._teacher[0]

    def frames(self, frames: Sequence[Tensor], targets: Sequence[Any]) -> Iterator[Tensor]:
        """Yield the share of every frame in the loss; only those that have any."""
        labelled = sum(target is not None for target in targets)
        if self.teacher is None and not labelled:
            msg = "no frame of the interval has a target, and distill='off': there is nothing to learn from."
            raise ConfigError(msg)
        config = self.config
        outputs = unroll(
            self.model, frames, run=self._run, truncate=config.truncate, checkpointing=config.checkpointing
        )
        for frame, target, (output, features) in zip(frames, targets, outputs, strict=True):
            part = None
            if target is not None:
                part = self.loss(output, target) / labelled
            if self.teacher is not None:
                taught = self.teacher.loss(methodcaller("__call__", frame), output, features)
                taught = taught * (self.config.distill_weight / len(frames))
                part = taught if part is None else part + taught
            if part is not None:
                yield part

    def _run(self, position: int, frame: Tensor) -> tuple[Any, dict[str, Tensor]]:  # noqa: ARG002
        if self.teacher is None:
            return self.model(frame), {}
        with self.teacher.watching(self.model) as features:
            return self.model(frame), features

    def forward(self, frames: Sequence[Tensor], targets: Sequence[Any]) -> Tensor:
        """Return the loss () of one interval.

        Args:
            frames: T frames (N, C, H, W).
            targets: T targets; None where there is no label.
        """
        return torch.stack(list(self.frames(frames, targets))).sum()
