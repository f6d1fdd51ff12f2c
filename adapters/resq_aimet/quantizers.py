"""AIMET quantizers on the grid of Eq. 1 and 6, and what the core sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from aimet_torch.quantization.affine import QuantizeDequantize
from aimet_torch.quantization.encoding_analyzer import MinMaxEncodingAnalyzer
from torch import Tensor

from resq_plugin.errors import CalibrationError
from resq_plugin.method import integer_range

__all__ = ["ActivationView", "HalfRangeAnalyzer", "NoQuantizer", "new_quantizer"]


class HalfRangeAnalyzer(MinMaxEncodingAnalyzer):
    """AIMET's min-max calibration with the range of Eq. 6, ±max(r_max, -r_min), whose scale AIMET then computes alike.

    AIMET's own makes the ends of the grid meet the ends of the range: at 4 bits its scale is r / 7 instead of r / 7.5.
    """

    def compute_encodings_from_stats(self, stats: Any, num_steps: int, is_symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return minimum and maximum of the range."""
        low, high = super().compute_encodings_from_stats(stats, num_steps, is_symmetric=False)
        half = torch.maximum(high, -low)
        return (-half, half) if is_symmetric else (torch.zeros_like(half), half)


def new_quantizer(
    bits: int,
    shape: tuple[int, ...] = (),
    *,
    block_size: tuple[int, ...] | None = None,
    device: torch.device | None = None,
) -> QuantizeDequantize:
    """Return a symmetric quantizer without a range, one scale per entry of ``shape``."""
    analyzer = HalfRangeAnalyzer(shape, block_size)
    quantizer = QuantizeDequantize(
        shape, bitwidth=bits, symmetric=True, encoding_analyzer=analyzer, block_size=block_size
    )
    return quantizer.to(device)


@dataclass(frozen=True)
class ActivationView:
    """One AIMET activation quantizer as the core sees it, `resq_plugin.method.ActivationQuantizer`.

    Attributes:
        quantizer: what holds the range; learnable, part of AIMET's state dicts and encodings.
        owner: what errors call it.
        advice: the call that finds its range.
    """

    quantizer: QuantizeDequantize
    owner: str
    advice: str = "resq_plugin.calibrate(model, clips)"

    @property
    def bits(self) -> int:
        """Bit width b."""
        return self.quantizer.bitwidth

    @property
    def signed(self) -> bool:
        """Whether the grid is symmetric."""
        return self.quantizer.qmin < 0

    @property
    def scale(self) -> Tensor:
        """Scale s, (); gradients flow to AIMET's min and max.

        Raises:
            CalibrationError: there is no range yet.
        """
        self.check()
        return self.quantizer.get_scale()

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a range."""
        return bool(self.quantizer.is_initialized())

    @property
    def range(self) -> tuple[float, float]:
        """The range (r_min, r_max) of which the scale was made."""
        return float(self.quantizer.min.detach()), float(self.quantizer.max.detach())

    def set_range(self, r_min: float, r_max: float, *, signed: bool = True) -> None:
        """Set grid and range so that AIMET's scale, (max - min) / (2^b - 1), is that of Eq. 6."""
        half = max(r_max, -r_min)
        self.quantizer.qmin, self.quantizer.qmax = integer_range(self.bits, signed=signed)
        self.quantizer.symmetric = signed
        self.quantizer.set_range(-half if signed else 0.0, half if signed else r_max)

    def check(self) -> None:
        """Raise unless calibrated."""
        if not self.is_calibrated:
            msg = f"{self.owner} has no range; call {self.advice} before you run the model."
            raise CalibrationError(msg)


@dataclass(frozen=True)
class NoQuantizer:
    """The place of a quantizer that a layer does not have: of 0 bits, or of a Φ_a that AIMET placed itself.

    Attributes:
        bits: bit width b.
        signed: nothing depends on it.
        is_upstream: whether AIMET quantizes what the layer reads.
    """

    bits: int = 0
    signed: bool = True
    is_upstream: bool = False

    @property
    def is_calibrated(self) -> bool:
        """Always: there is nothing to calibrate."""
        return True

    @property
    def scale(self) -> Tensor:
        """1, which no value is divided by."""
        return torch.ones(())

    def set_range(self, r_min: float, r_max: float, *, signed: bool = True) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""
