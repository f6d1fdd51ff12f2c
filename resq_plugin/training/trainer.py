"""Quantization-aware training through time (§5): intervals in, loss, step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.training.losses import Loss, first
from resq_plugin.training.order import Clips, steps_of
from resq_plugin.training.ranges import counting_elements
from resq_plugin.training.run import Optimizer, Run, TrainResult
from resq_plugin.training.settings import TrainConfig

__all__ = ["train"]


def train(
    model: nn.Module,
    clips: Clips,
    loss: Loss,
    config: TrainConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    logits: Callable[[Any], Tensor] = first,
    optimizer: Optimizer = torch.optim.Adam,
    validate: Callable[[nn.Module], float] | None = None,
    validate_every: int = 100,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = False,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
) -> TrainResult:
    """Train a converted and calibrated model on intervals, in place.

    Under `torch.distributed` every process calls this with the same arguments; gradients are averaged by
    DistributedDataParallel, and only the first process writes files.

    Args:
        model: from `convert`, after `calibrate`. Frame quantization, a precision such as ``W4A4``, trains alike: each
            frame of an interval on its own.
        clips: labelled clips, see `Clips`.
        loss: ``loss(output, target)`` of one frame, a tensor ().
        config: the settings.
        teacher: the float model for ``config.distill``; by default a copy of what ``model`` was converted from.
        logits: model output to class scores (N, C, *), for ``distill='logits'``.
        optimizer: makes the optimizer of groups of parameters.
        validate: accuracy on held-out data, shown and kept; the model is in evaluation mode.
        validate_every: steps between.
        folder: where to keep ``training.pt``; a run that was interrupted there is continued.
        resume: continue it; else start over.
        progress: show a progress bar.
        on_step: called after every step with loss, learning rate and gradient norm.

    Raises:
        TrainingError: the loss is NaN or Inf, or a scale became useless; layer and step are named, and the last
            checkpoint stays as it was.
        CheckpointError: the folder holds the run of another model or other settings.
    """
    config = config or TrainConfig()
    run = Run(model, loss, config, teacher, logits, optimizer, None if folder is None else Path(folder))
    if resume:
        run.resume()
    clock = tqdm(total=config.steps, initial=run.step, desc="training", disable=not (progress and run.rank == 0))
    shown: dict[str, str] = {}
    with counting_elements(model) as elements, run.training(), clock:
        run.elements = elements
        for batch in steps_of(clips, config, run.step, run.rank, run.world):
            found = run.take_step(batch)
            if validate is not None and (run.step % validate_every == 0 or run.step == config.steps):
                with run.evaluating():
                    run.result.validation[run.step] = value = float(validate(model))
                shown["accuracy"] = f"{value:.2f}"
            if run.step % config.save_every == 0 or run.step == config.steps:
                run.save()
            shown["loss"] = f"{found['loss']:.4f}"
            clock.set_postfix(shown, refresh=False)
            clock.update()
            if on_step is not None:
                on_step(run.step, found)
    run.finish()
    return run.result
