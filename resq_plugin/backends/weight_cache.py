"""Quantized weights, kept for as long as what they are made of stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["WeightCache", "stamp"]


class WeightCache(dict[str, tuple[object, Tensor, Tensor | None]]):
    """Quantized weights by role. Copies and pickles of a layer start with an empty one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


def stamp(tensor: Tensor) -> tuple[object, ...]:
    """Change whenever the tensor changes; on the CPU also when it is written behind autograd's back (``.data``)."""
    version = -1 if tensor.is_inference() else tensor._version
    checksum = _checksum(tensor.detach()) if tensor.device.type == "cpu" else None
    return tensor.data_ptr(), version, tensor.shape, tensor.dtype, tensor.device, checksum


def _checksum(tensor: Tensor) -> int:
    """Sum of the memory in the widest words that fit it, which is fastest; it wraps around, which does no harm."""
    flat = tensor.contiguous().view(-1)
    sizes = flat.nbytes, flat.storage_offset() * flat.element_size()
    words = (
        word
        for word in (torch.int64, torch.int32, torch.int16, torch.uint8)
        if not any(n % word.itemsize for n in sizes)
    )
    return int(flat.view(next(words)).sum())
