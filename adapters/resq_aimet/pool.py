"""The pool of Θ_a of Dynamic-ResQ, as one quantized module that AIMET calibrates, saves and copies like any other."""

from __future__ import annotations

from aimet_torch.nn import QuantizationMixin
from torch import Tensor, nn

from resq_aimet._compat import is_observing
from resq_aimet.quantizers import new_quantizer

__all__ = ["PixelPool", "QuantizedPixelPool"]


class PixelPool(nn.Module):
    """An identity, the float twin of `QuantizedPixelPool`."""

    def forward(self, delta: Tensor) -> Tensor:
        """Return δ."""
        return delta


@QuantizationMixin.implements(PixelPool)
class QuantizedPixelPool(QuantizationMixin, PixelPool):
    """Holds one quantizer per bit width as ``input_quantizers``, low to high; None stands for 0 bits.

    The layer that owns it reads them to quantize and mix by Eq. 11.
    """

    def hold(self, pool: tuple[int, ...]) -> None:
        """Make the quantizers."""
        self.input_quantizers = nn.ModuleList(new_quantizer(bits) if bits else None for bits in pool)

    def forward(self, delta: Tensor) -> Tensor:
        """Show δ to the quantizers that AIMET calibrates and return it."""
        for quantizer in self.input_quantizers:
            if is_observing(quantizer):
                quantizer(delta)
        return delta
