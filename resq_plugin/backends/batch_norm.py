"""Folding batch norms into the layer before them, without touching a single Parameter.

A folded batch norm keeps its place, parameters and statistics in the model but passes its input through; the layer
before it computes with the folded weight. So float checkpoints fit before and after, and undoing it is exact. It is no
`torch.nn.BatchNorm2d` as long as it is folded, so that tools which fuse, replace or recompute batch norms pass it by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resq_plugin.backends.class_swap import swap_class, swap_class_back
from resq_plugin.backends.folded_output import take
from resq_plugin.backends.wrappers import torch_class
from resq_plugin.errors import FoldingError

__all__ = ["FoldedNorm", "fold", "fold_factors", "is_foldable", "unfold"]

_FOLDABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNorm)


class FoldedNorm(nn.Module):
    """A batch norm whose work is done by the layer before it, with the Parameters and buffers that it always had."""

    _version = _BatchNorm._version
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None
    eps: float
    _original: type[nn.Module]
    _source: Any
    """The layer that does the work."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` (N, C, *), the output of the layer.

        Raises:
            FoldingError: it is something else.
        """
        layer = self._source
        is_folded = any(norm is self for norm in getattr(layer, "_folded", ()))
        return take(input, layer, self, layer.settings.name) if is_folded else input

    def reset_running_stats(self) -> None:
        """Refuse: no forward pass would ever fill the statistics again."""
        msg = (
            f"this {self._original.__name__} is folded into layer {self._source.settings.name}, so that its "
            "statistics are constants which no forward pass computes; call resq_plugin.revert(model) before you reset "
            "them."
        )
        raise FoldingError(msg)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as a new batch norm does."""
        for tensor, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if tensor is not None:
                tensor.fill_(value)
        for parameter, value in ((self.weight, 1), (self.bias, 0)):
            if parameter is not None:
                parameter.fill_(value)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        if (local_metadata.get("version") or 0) < 2 and self.num_batches_tracked is not None:  # as `_BatchNorm` does
            state_dict.setdefault(key, self.num_batches_tracked.new_zeros(()))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        """Show what it was."""
        return f"{self._original.__name__}, {self.running_mean.shape[0]}, eps={self.eps}"


def is_foldable(module: nn.Module) -> bool:
    """Whether the module is a batch norm with running statistics."""
    return torch_class(type(module)) in _FOLDABLE and getattr(module, "running_var", None) is not None


def fold(norm: nn.Module, layer: nn.Module) -> FoldedNorm:
    """Make a batch norm pass through, in place, as ``layer`` does its work."""
    swap_class(norm, FoldedNorm)
    norm.__dict__["_source"] = layer
    return norm  # type: ignore[return-value]


def unfold(norm: nn.Module) -> None:
    """Make a folded batch norm work again, in place."""
    swap_class_back(norm)
    del norm.__dict__["_source"]


def fold_factors(norm: FoldedNorm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factor of the weights and new bias, each (C,), that stand for the batch norm behind a layer.

    Args:
        norm: the batch norm, with running mean m, variance v, weight γ and bias β.
        bias: bias b of the layer (C,), if it has one.

    Returns:
        ``f = γ / sqrt(v + eps)`` and ``(b - m) f + β``.
    """
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shifted = (0 if bias is None else bias) - norm.running_mean
    folded: Any = shifted * factor
    return factor, folded if norm.bias is None else folded + norm.bias
