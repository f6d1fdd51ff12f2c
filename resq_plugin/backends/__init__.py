"""Who holds the quantizers of a layer: plain torch here, host toolkits by entry point."""

from __future__ import annotations

from resq_plugin.backends.batch_norm import FoldedNorm, fold, is_foldable, unfold
from resq_plugin.backends.class_swap import swap_class, swap_class_back
from resq_plugin.backends.elementwise import quantize_difference
from resq_plugin.backends.patterns import check_patterns
from resq_plugin.backends.registry import GROUP, find_backend
from resq_plugin.backends.shared_weights import sharing_weights
from resq_plugin.backends.torch_backend import (
    ResQConv1d,
    ResQConv2d,
    ResQConv3d,
    ResQConvTranspose1d,
    ResQConvTranspose2d,
    ResQConvTranspose3d,
    ResQLinear,
)
from resq_plugin.backends.torch_layer import TorchResidualLayer
from resq_plugin.backends.wrappers import torch_class

__all__ = [
    "GROUP",
    "FoldedNorm",
    "ResQConv1d",
    "ResQConv2d",
    "ResQConv3d",
    "ResQConvTranspose1d",
    "ResQConvTranspose2d",
    "ResQConvTranspose3d",
    "ResQLinear",
    "TorchResidualLayer",
    "check_patterns",
    "find_backend",
    "fold",
    "is_foldable",
    "quantize_difference",
    "sharing_weights",
    "swap_class",
    "swap_class_back",
    "torch_class",
    "unfold",
]
