"""One training run and everything that its next step depends on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resq_plugin.errors import CheckpointError, TrainingError
from resq_plugin.method import residual_layers
from resq_plugin.training.batch import split, stack
from resq_plugin.training.frozen import float_teacher, freeze_batch_norms
from resq_plugin.training.losses import ClipLoss, Loss, Teacher
from resq_plugin.training.order import interval_of
from resq_plugin.training.progress import read_progress, write_progress
from resq_plugin.training.ranges import check_ranges, parameter_groups, prepare_ranges, scale_gradients
from resq_plugin.training.settings import TrainConfig
from resq_plugin.training.unroll import one_step, refuse_sharded

__all__ = ["Optimizer", "Run", "TrainResult"]

Optimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass
class TrainResult:
    """What training did.

    Attributes:
        losses: the loss of every step, the mean of all processes.
        validation: step to what ``validate`` returned after it.
        steps: how many steps this call made.
    """

    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    steps: int = 0


class Run:
    """One training run and everything that its next step depends on."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: TrainConfig,
        teacher: nn.Module | None,
        logits: Callable[[Any], Tensor],
        optimizer: Optimizer,
        folder: Path | None,
    ) -> None:
        refuse_sharded(model)
        self.model, self.config, self.folder = model, config, folder
        self.rank, self.world = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if self.world > 1:
            # Ranges too: grids and folded batch norms are no tensors that DistributedDataParallel would broadcast.
            model.load_state_dict(_from_first(model.state_dict()))
        self.device = next(model.parameters()).device
        self.residuals = any(layer.settings.residual is not None for layer in residual_layers(model).values())
        taught = None
        if config.distill != "off":
            taught = Teacher(teacher or float_teacher(model), config, logits)
        self.ranges = prepare_ranges(model, config)
        self.optimizer = optimizer(parameter_groups(model, self.ranges, config))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.autocast == "float16")
        self.elements: dict[str, int] = {}
        self.clip_loss: nn.Module = ClipLoss(model, loss, config, taught)
        if self.world > 1:
            self.clip_loss = nn.parallel.DistributedDataParallel(
                self.clip_loss, find_unused_parameters=True, broadcast_buffers=config.batch_norm == "live"
            )
        self.average = {name: value.detach().clone() for name, value in self._trained()} if config.ema else {}
        self.step = 0
        self.result = TrainResult()

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]

    def _rate(self, step: int) -> float:
        config = self.config
        rising = min(1.0, (step + 1) / (config.warmup + 1))
        return (
            rising if config.schedule == "constant" else rising * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        )

    @contextmanager
    def training(self) -> Any:
        """Training mode, but for batch norms with frozen statistics; flags are given back."""
        flags = {module: module.training for module in self.model.modules()}
        self._train_mode()
        try:
            yield
        finally:
            for module, flag in flags.items():
                module.training = flag

    def _train_mode(self) -> None:
        self.model.train()
        if self.config.batch_norm == "frozen":
            freeze_batch_norms(self.model)

    @contextmanager
    def evaluating(self) -> Any:
        """Evaluation mode with the averaged weights, if they are averaged."""
        self.model.eval()
        kept = self._swap(self.average)
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap(kept)
            self._train_mode()

    @torch.no_grad()
    def _swap(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        parameters = dict(self.model.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in values}
        for name, value in values.items():
            parameters[name].copy_(value)
        return kept

    def take_step(self, batch: list[Any]) -> dict[str, float]:
        """One optimizer step on a list of clips."""
        config, number = self.config, self.step + 1
        interval = interval_of(config, self.step)
        parts = split(batch, config.accumulate)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for index, part in enumerate(parts):
            frames, targets = stack(part, interval)
            frames = [frame.to(self.device) for frame in frames]
            targets = [None if target is None else target.to(self.device) for target in targets]
            share = len(part) / len(batch)
            last = index == len(parts) - 1
            total += self._backward(frames, targets, share, last)
        if self.world > 1:
            dist.all_reduce(total)
            total /= self.world
        value = float(total)
        if not math.isfinite(value):
            msg = f"the loss became {value} in step {number}; {self._kept()} Train with a lower lr or clip_norm."
            raise TrainingError(msg)
        self.scaler.unscale_(self.optimizer)
        scale_gradients(self.ranges, self.elements, self.model)
        norm = self._clip()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        check_ranges(self.ranges, number, self._kept())
        with torch.no_grad():
            for name, parameter in self._trained() if self.average else ():
                self.average[name].lerp_(parameter, 1 - config.ema)
        self.step = number
        self.result.steps += 1
        self.result.losses.append(value)
        return {"loss": value, "lr": rates[0], "grad_norm": norm}

    def _backward(self, frames: list[Tensor], targets: list[Any], share: float, last: bool) -> Tensor:
        config, device = self.config, self.device.type
        kind = torch.bfloat16 if config.autocast == "bfloat16" else torch.float16
        autocast = torch.autocast(device, kind, enabled=config.autocast != "off")
        total = torch.zeros((), device=self.device)
        truncated = config.truncate and self.world == 1
        with autocast:
            if truncated:
                for part in cast(ClipLoss, self.clip_loss).frames(frames, targets):
                    self.scaler.scale(part * share).backward()
                    total += part.detach() * share
                return total
            waiting = self.world > 1 and not last  # gradients are averaged with those of the last part
            quiet = cast(Any, self.clip_loss).no_sync() if waiting else nullcontext()
            with quiet, one_step(self.model, residuals=self.residuals and len(frames) > 1):
                loss: Tensor = self.clip_loss(frames, targets)
                self.scaler.scale(loss * share).backward()
        return loss.detach() * share

    def _clip(self) -> float:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        limit = self.config.clip_norm or math.inf
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def _kept(self) -> str:
        saved = self.step // self.config.save_every * self.config.save_every
        if self.folder is None or not saved:
            return "no checkpoint was written before it (pass folder=...)."
        return f"the checkpoint of step {saved} is kept in {self.folder}."

    def save(self) -> None:
        """Write everything that the next step depends on."""
        if self.folder is None or self.rank:
            return
        write_progress(
            self.folder,
            {
                "config": dataclasses.asdict(self.config) | {"intervals": list(self.config.intervals)},
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": self.average,
                "losses": self.result.losses,
                "validation": self.result.validation,
                "random": torch.get_rng_state(),
            },
        )

    def resume(self) -> None:
        """Continue the run of the folder, if there is one."""
        found = None if self.folder is None or self.rank else read_progress(self.folder)
        found = _from_first(found) if self.world > 1 else found
        if found is None:
            return
        before = TrainConfig.from_dict(found["config"])
        changed = {
            key: getattr(before, key)
            for key in (item.name for item in dataclasses.fields(TrainConfig))
            if getattr(before, key) != getattr(self.config, key) and key not in ("workers", "save_every")
        }
        if changed:
            msg = (
                f"{self.folder} holds a run with other settings ({_listed(changed)}); write them, pass another "
                "folder, or resume=False to start over."
            )
            raise CheckpointError(msg)
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.scheduler.load_state_dict(found["scheduler"])
        self.scaler.load_state_dict(found["scaler"])
        self.average = {name: value.to(self.device) for name, value in found["average"].items()}
        self.result.losses, self.result.validation = list(found["losses"]), dict(found["validation"])
        self.step = found["step"]
        torch.set_rng_state(found["random"])

    def finish(self) -> None:
        """Leave the averaged weights in the model, if they are averaged."""
        self._swap(self.average)


def _from_first(value: Any) -> Any:
    """What the first process has."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())
