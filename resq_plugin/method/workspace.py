"""Memory for residuals, which live no longer than one call of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Workspace"]


class Workspace:
    """One piece of memory that the layers of a stream take in turn.

    A residual is as large as the layer's input. A new tensor for each costs more than the arithmetic on the CPU,
    because its memory is cold and often not even mapped.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def like(self, x: Tensor, count: int = 1, dtype: torch.dtype | None = None) -> list[Tensor] | None:
        """Uninitialized tensors of the shape and layout of ``x``, which are valid until the next call.

        Their type is that of ``x`` unless given.

        None where autograd, a tracer or a compiler follows what is written, for half precision, which is quantized in
        float32, and for an ``x`` with gaps or overlaps.
        """
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        is_followed = torch.is_grad_enabled() or is_traced or torch.compiler.is_compiling()
        is_dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        dtype = dtype or x.dtype
        size = count * x.numel() * dtype.itemsize
        if is_followed or not is_dense or dtype.itemsize < 4:
            return None
        memory = self._memory
        if memory is None or memory.device != x.device or memory.nbytes < size:
            with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
                self._memory = memory = torch.empty(size, dtype=torch.uint8, device=x.device)
        pieces = memory[:size].view(dtype).view(count, x.numel())
        return [piece.as_strided(x.shape, x.stride(), piece.storage_offset()) for piece in pieces]

    def clear(self) -> None:
        """Free the memory."""
        self._memory = None
