"""Weights of one layer fitted to its outputs in closed form: least squares, then rounding in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resq_plugin.method import integer_range

__all__ = ["Moments", "fit_weight", "round_in_turn", "rounded_on_outputs"]

DAMPING = 0.01
"""What keeps weights near those of the float layer, relative to the mean square of an input."""

BLOCK = 64
"""Inputs whose errors are handed on together."""


@dataclass(frozen=True)
class Moments:
    """What least squares need of the inputs x̂ and outputs z of a layer with G groups.

    Attributes:
        gram: ``E[x̂ x̂ᵀ]``, (G, D, D).
        cross: ``E[x̂ zᵀ]``, (G, D, O).
        mean_x: ``E[x̂]``, (G, D).
        mean_z: ``E[z]``, (G, O).
    """

    gram: Tensor
    cross: Tensor
    mean_x: Tensor
    mean_z: Tensor

    @classmethod
    def of(cls, x: Tensor, z: Tensor, *, centred: bool) -> Moments:
        """Of samples.

        Args:
            x: what the layer reads at some positions, quantized, (G, P, D).
            z: what it is to put out there, (G, P, O).
            centred: take the means off first, because a bias makes good for them.
        """
        mean_x, mean_z = x.mean(1), z.mean(1)
        if centred:
            x, z = x - mean_x.unsqueeze(1), z - mean_z.unsqueeze(1)
        turned = x.transpose(1, 2) / x.shape[1]
        return cls(turned @ x, turned @ z, mean_x, mean_z)

    def __add__(self, other: Moments) -> Moments:
        """Of both errors at once; the means stay those of the first."""
        return Moments(self.gram + other.gram, self.cross + other.cross, self.mean_x, self.mean_z)


def fit_weight(weight: Tensor, moments: Moments) -> Tensor:
    """The weight of least ``E‖x̂ w - z‖² + λ‖w - w_0‖²``, not rounded.

    Args:
        weight: w_0, (G, O, D).
        moments: of inputs and outputs.
    """
    gram = _damped(moments.gram)
    missing = moments.cross.double() - moments.gram.double() @ weight.double().transpose(1, 2)
    change = torch.cholesky_solve(missing, torch.linalg.cholesky(gram))
    return (weight.double() + change.transpose(1, 2)).to(weight.dtype)


def round_in_turn(weight: Tensor, gram: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integers of a weight, rounded one input after the other; those still to come make good for each error.

    This is GPTQ (Frantar et al. 2023, §3): after input j is rounded, the others change by the least squares of
    ``E‖x̂ (w - ŵ)‖²``. Inputs of much energy come first.

    Args:
        weight: w, (G, O, D).
        gram: ``E[x̂ x̂ᵀ]``, (G, D, D).
        scale: s, (G, O, 1).
        bits: b.

    Returns:
        Integers of the grid of Eq. 1, (G, O, D), in the type of ``weight``.
    """
    low, high = integer_range(bits)
    order = gram.diagonal(dim1=1, dim2=2).sum(0).argsort(descending=True, stable=True)
    steps = (weight.double() / scale.double())[:, :, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(gram)[:, order][:, :, order]))
    factor = torch.linalg.cholesky(inverse).transpose(1, 2).contiguous()
    integers = torch.empty_like(steps)
    for begin in range(0, len(order), BLOCK):
        end = min(begin + BLOCK, len(order))
        errors = []
        for j in range(begin, end):
            integers[:, :, j] = steps[:, :, j].round().clamp_(low, high)
            error = ((steps[:, :, j] - integers[:, :, j]) / factor[:, j, j, None]).unsqueeze(2)
            steps[:, :, j:end] -= error * factor[:, None, j, j:end]
            errors.append(error)
        steps[:, :, end:] -= torch.cat(errors, 2) @ factor[:, begin:end, end:]
    return integers[:, :, order.argsort()].to(weight.dtype)


def rounded_on_outputs(weight: Tensor, scale: Tensor, bits: int, moments: Moments) -> Tensor:
    """Integers (G, O, D) of the weight whose outputs for quantized inputs come nearest to those wanted.

    Args:
        weight: the float weight, (G, O, D).
        scale: s, (G, O, 1).
        bits: b.
        moments: of inputs and outputs.
    """
    return round_in_turn(fit_weight(weight, moments), moments.gram, scale, bits)


def _damped(gram: Tensor) -> Tensor:
    """In double precision, and positive definite also for inputs that are always zero."""
    gram = gram.double()
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    added = torch.where(mean > 0, DAMPING * mean, 1.0)
    return gram + torch.diag_embed(added[:, None].expand(gram.shape[:2]))
