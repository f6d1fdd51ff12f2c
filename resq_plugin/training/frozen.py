"""What stays as it is while a model is trained: statistics of batch norms, and the float model that teaches."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resq_plugin.conversion import revert
from resq_plugin.method import ResidualLayer

__all__ = ["float_teacher", "freeze_batch_norms"]


def float_teacher(model: nn.Module) -> nn.Module:
    """A frozen copy of the float model that a converted model was made of, with today's weights."""
    teacher = copy.deepcopy(model)
    if any(isinstance(module, ResidualLayer) for module in teacher.modules()):
        revert(teacher)
    return teacher.eval().requires_grad_(False)


def freeze_batch_norms(model: nn.Module) -> None:
    """Let every batch norm use its statistics instead of those of the batch; call it after ``model.train()``."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
