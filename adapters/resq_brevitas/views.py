"""What the core sees of Brevitas' activation quantizers, and how one is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resq_brevitas._compat import (
    grid_of,
    initialize,
    is_exporting,
    is_initialized,
    is_observing,
    is_quantizing,
    plain,
    remake,
    scaling_of,
)
from resq_brevitas.quantizers import HalfStepIntScaling
from resq_plugin.errors import CalibrationError
from resq_plugin.method import UniformQuantizer

__all__ = ["ZERO_BITS", "ActivationView"]

ZERO_BITS = UniformQuantizer(0)
"""Stands for 0 bits, which Brevitas does not know."""


@dataclass(frozen=True)
class ActivationView:
    """One activation quantizer of Brevitas as the core sees it, `resq_plugin.method.ActivationQuantizer`.

    Attributes:
        proxy: Brevitas' proxy, which holds the learned range.
        owner: what errors call it.
    """

    proxy: Any
    owner: str

    @property
    def bits(self) -> int:
        """Bit width b."""
        return int(grid_of(self.proxy).msb_clamp_bit_width_impl())

    @property
    def signed(self) -> bool:
        """Whether the grid is symmetric."""
        return bool(self.proxy.is_signed)

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a range."""
        return is_initialized(self.proxy)

    @property
    def scale(self) -> Tensor:
        """Scale s, (); gradients flow to Brevitas' range.

        Raises:
            CalibrationError: there is no range yet.
        """
        self.check()
        grid = grid_of(self.proxy)
        bit_width = grid.msb_clamp_bit_width_impl()
        scale: Tensor = grid.scaling_impl(bit_width, grid.int_scaling_impl(bit_width))
        return scale

    @property
    def range(self) -> tuple[float, float]:
        """The range (r_min, r_max) of which the scale was made."""
        r_max = float(scaling_of(self.proxy).value.detach())
        return (-r_max if self.signed else 0.0), r_max

    def set_range(self, r_min: float, r_max: float, *, signed: bool = True) -> None:
        """Set grid and range.

        Raises:
            CalibrationError: the quantizer's scale is not that of Eq. 6.
        """
        self.check_grid()
        if signed != self.signed:
            remake(self.proxy, signed=signed)
        initialize(self.proxy, max(r_max, -r_min))

    def check_grid(self) -> None:
        """Raise unless the scale is that of Eq. 6, which the line search of Eq. 8 supposes."""
        if not isinstance(getattr(grid_of(self.proxy), "int_scaling_impl", None), HalfStepIntScaling):
            msg = (
                f"{self.owner} is not on the grid of Eq. 6, which resq_plugin.calibrate searches; calibrate it with "
                "brevitas.graph.calibrate.calibration_mode, or use resq_brevitas.ResQAct."
            )
            raise CalibrationError(msg)

    def check(self) -> None:
        """Raise unless calibrated, or about to be, or not in use."""
        if is_quantizing(self.proxy) and not (is_initialized(self.proxy) or is_observing(self.proxy)):
            msg = (
                f"{self.owner} has no range; call resq_plugin.calibrate(model, clips) before you run the model, or "
                "show it keyframes and residual frames in calibration_mode(model): with stream(model) as video: ..."
            )
            raise CalibrationError(msg)

    def __call__(self, x: Tensor) -> Tensor:
        """Return q(x; Θ) as Brevitas computes it, a new tensor of the shape of ``x``."""
        if not is_exporting(self.proxy):
            self.check()
        quantized = plain(self.proxy(x))
        return torch.clone(quantized) if quantized is x else quantized
