"""Uniform affine quantization, Eq. 1 and 6: pure functions and the module that holds one activation scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.errors import CalibrationError, CheckpointError

__all__ = [
    "UniformQuantizer",
    "fake_quantize",
    "fake_quantize_weight",
    "integer_range",
    "is_lowest",
    "quantize_to_integers",
    "scale_from_range",
    "settle_lowest",
    "weight_range",
    "weight_scale",
]

SMALLEST_SCALE = 1e-12
"""Floor of every scale: an all-zero weight or a dead input must not divide by zero."""

HALF_TYPES = (torch.float16, torch.bfloat16)
"""Too coarse for x / s and for the scales of 16 bits: these are quantized in float32."""


TIE = 2.0**-20
"""How close, relatively, to the tie at the low end of a weight's range a float may be and still stand for it."""


class _RoundStraightThrough(torch.autograd.Function):
    """Rounding (half to even) whose gradient is the identity [4]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0]


class _FakeQuantize(torch.autograd.Function):
    """Eq. 1 in one piece: as many gradients as step by step, but only ``x`` is kept for them.

    Training runs this for every layer and frame, and what is kept is most of its memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.grid = low, high
        scale = scale.to(x.dtype)
        return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, scale = ctx.saved_tensors
        (grad,), (low, high) = grads, ctx.grid
        steps = torch.div(x, scale.to(x.dtype))
        rounded = steps.round()
        integers = rounded.clamp(low, high)
        inside = rounded == integers
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # d(s q)/ds is q outside of the grid, whose ends belong to it, and q - x/s inside.
            slope = torch.addcmul(integers, steps, inside.to(steps.dtype), value=-1).mul_(grad)
            grad_scale = slope.sum_to_size(scale.shape).to(scale.dtype)
        return (grad * inside if ctx.needs_input_grad[0] else None), grad_scale, None, None


def integer_range(bits: int, *, signed: bool = True) -> tuple[int, int]:
    """Return the lowest and highest integer of the grid of Eq. 1.

    >>> integer_range(4), integer_range(4, signed=False), integer_range(0)
    ((-8, 7), (0, 15), (0, 0))
    """
    if bits == 0:
        return 0, 0
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def scale_from_range(r_min: Tensor, r_max: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """Scale s of Eq. 6: ``2 max(r_max, -r_min) / (2^b - 1)``; on an unsigned grid ``r_max / (2^b - 1)``.

    Args:
        r_min: lower end of the range, any shape.
        r_max: upper end of the range, the same shape.
        bits: b; 0 bits have no scale, and 1 is returned.
        signed: whether the grid is symmetric (the paper) or starts at zero.

    >>> scale_from_range(torch.tensor(-3.0), torch.tensor(1.5), 4)
    tensor(0.4000)
    """
    if r_max.dtype in HALF_TYPES:  # 2^16 - 1 is infinite in float16
        return scale_from_range(r_min.float(), r_max.float(), bits, signed=signed)
    if bits == 0:
        return torch.ones_like(r_max)
    span = 2 * torch.maximum(r_max, -r_min) if signed else r_max
    # By a tensor: CUDA multiplies by the reciprocal of a number, which is another scale in the last digit.
    return (span / torch.full_like(span, 2**bits - 1)).clamp_min(SMALLEST_SCALE)


def quantize_to_integers(
    x: Tensor, scale: Tensor, bits: int, *, signed: bool = True, out: Tensor | None = None
) -> Tensor:
    """The integers of Eq. 1, ``clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)``, in the type and shape of ``x``.

    They may take the memory ``out``, which may be that of ``x``: a large new tensor costs more than the arithmetic.

    >>> quantize_to_integers(torch.tensor([-9.0, -0.6, 0.5, 1.5, 9.0]), torch.tensor(1.0), 4)
    tensor([-8., -1.,  0.,  2.,  7.])
    """
    if x.dtype in HALF_TYPES:
        return quantize_to_integers(x.float(), scale, bits, signed=signed).to(x.dtype)
    low, high = integer_range(bits, signed=signed)
    if bits == 0:
        return torch.zeros_like(x)
    scale = scale.to(x.dtype)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        rounded: Tensor = _RoundStraightThrough.apply(x / scale)
        clamped = rounded.detach().clamp(low, high)
        # The ends belong to the grid, but `rounded.clamp` gives them no gradient in recent releases of torch.
        return torch.where(rounded.detach() == clamped, rounded, clamped)
    return torch.div(x, scale, out=out).round_().clamp_(low, high)


def fake_quantize(x: Tensor, scale: Tensor, bits: int, *, signed: bool = True, out: Tensor | None = None) -> Tensor:
    """Quantizer q(x; Θ) of Eq. 1, with the straight-through gradient to ``x`` and to the scale.

    Args:
        x: any shape.
        scale: s, broadcastable to ``x``.
        bits: b; 0 gives zeros.
        signed: whether the grid is symmetric (the paper) or starts at zero.
        out: memory of the shape of ``x`` that the result may take where no gradient is recorded; may be ``x`` itself.

    Returns:
        A tensor of the shape of ``x``, new or in ``out``, never a view of ``x``.
    """
    if x.dtype in HALF_TYPES:
        return fake_quantize(x.float(), scale, bits, signed=signed).to(x.dtype)
    if bits and torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        quantized: Tensor = _FakeQuantize.apply(x, scale, *integer_range(bits, signed=signed))
        return quantized
    integers = quantize_to_integers(x, scale, bits, signed=signed, out=out)
    scale = scale.to(x.dtype)
    return integers * scale if integers.requires_grad else integers.mul_(scale)


def is_lowest(weight: Tensor, scale: Tensor, bits: int | Tensor) -> Tensor:
    """Where a weight is at the low end of its range or below, so that its integer is -2^(b-1).

    By Eq. 6 and 7 the most negative weight is ``w / s = -(2^b - 1) / 2`` if it is the largest in magnitude: a tie, for
    every weight and channel, which half to even rounds to -2^(b-1). In floats the quotient may fall on either side of
    the tie, depending on type, device and order of the arithmetic, which is a whole step. So it is decided here.
    (The high end needs no such care: both sides of its tie are clamped to 2^(b-1) - 1.)
    """
    return weight <= scale * (-(2.0**bits - 1) / 2 * (1 - TIE))


def settle_lowest(weight: Tensor, scale: Tensor, bits: int | Tensor) -> Tensor:
    """The weight with its lowest values at ``-2^(b-1) s``, for those who round by arithmetic of their own.

    However they divide, they get the integers of `fake_quantize_weight`, with more bits, too.
    """
    lowest = -(2.0 ** (bits - 1)) * scale
    return torch.where(is_lowest(weight, scale, bits), lowest.to(weight.dtype), weight)


def fake_quantize_weight(weight: Tensor, scale: Tensor, bits: int, steps: Tensor | None = None) -> Tensor:
    """Quantizer q(w; Θ_w) of Eq. 1, with the integer -2^(b-1) at the low end of the range, see `is_lowest`.

    Args:
        weight: any shape.
        scale: s, from `weight_scale`, broadcastable to it.
        bits: b, at least 2.
        steps: what is added to the nearest integers, of the shape of ``weight``; the grid has the same ends.

    >>> fake_quantize_weight(torch.tensor([-7.5, 0.4, 7.5]), torch.tensor(1.0), 4)
    tensor([-8.,  0.,  7.])
    """
    if weight.dtype in HALF_TYPES:
        return fake_quantize_weight(weight.float(), scale, bits, steps).to(weight.dtype)
    integers, scale = quantize_to_integers(weight, scale, bits), scale.to(weight.dtype)
    with torch.no_grad():
        low, high = integer_range(bits)
        correction = torch.where(is_lowest(weight, scale, bits), low - integers, 0)
        if steps is not None:
            correction = (integers + correction + steps).clamp(low, high) - integers
    return (integers + correction) * scale


def weight_range(weight: Tensor, channel_dims: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Range of a weight by Eq. 7, its minimum and maximum.

    Args:
        weight: any shape.
        channel_dims: dimensions of the output channels, which get one range each (C, 1, 1, 1);
            none for one range of the whole tensor.
    """
    dims = [dim for dim in range(weight.dim()) if dim not in channel_dims]
    return weight.amin(dims, keepdim=True), weight.amax(dims, keepdim=True)


def weight_scale(weight: Tensor, bits: int, channel_dims: tuple[int, ...] = ()) -> Tensor:
    """Scale of a weight by Eq. 6 and 7. The range is data, not a path for gradients."""
    weight = weight.detach().float() if weight.dtype in HALF_TYPES else weight.detach()
    return scale_from_range(*weight_range(weight, channel_dims), bits)


class UniformQuantizer(nn.Module):
    """One activation quantizer: a bit width and a learnable scale, which is 0 until calibrated.

    Attributes:
        bits: b, 0 or 2 to 16.
        signed: symmetric grid (the paper) or one that starts at zero.
        owner: what errors call this quantizer, e.g. ``"layer conv1 (keyframe)"``.
        scale: s, a scalar parameter; QAT may learn it.
    """

    scale: nn.Parameter

    def __init__(
        self, bits: int, *, signed: bool = True, owner: str = "a quantizer", device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.owner = owner
        self.scale = nn.Parameter(torch.ones((), device=device) if bits == 0 else torch.zeros((), device=device))
        if bits == 0:
            self.scale.requires_grad_(False)
        self._checked_version = -1

    @property
    def is_calibrated(self) -> bool:
        """Whether a range has been set."""
        return bool(self.scale > 0)

    @torch.no_grad()
    def set_range(self, r_min: float, r_max: float, *, signed: bool = True) -> None:
        """Set the grid, and the scale from a range by Eq. 6."""
        self.signed = signed
        ends = torch.tensor([r_min, r_max], dtype=torch.float64)
        self.scale.copy_(scale_from_range(ends[0], ends[1], self.bits, signed=self.signed))
        self._checked_version = -1
        if not self.scale.is_meta and self.is_calibrated:
            self.check()

    @property
    def range(self) -> tuple[float, float]:
        """The range (r_min, r_max) of which the scale was made."""
        span = float(self.scale.detach()) * (2**self.bits - 1)
        return (-span / 2, span / 2) if self.signed else (0.0, span)

    def forward(self, x: Tensor) -> Tensor:
        """Return q(x; Θ), a new tensor of the shape of ``x``.

        Raises:
            CalibrationError: no range has been set.
        """
        self.check()
        return fake_quantize(x, self.scale, self.bits, signed=self.signed)

    def check(self) -> None:
        """Raise unless calibrated. Looks at the value only when it may have changed, to spare a device sync."""
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if is_traced and self._checked_version >= 0:  # neither can read a value
            return
        version = None if self.scale.is_inference() else self.scale._version
        if self.scale.is_meta or (version is not None and version == self._checked_version):
            return
        if not self.is_calibrated:
            msg = f"{self.owner} has no range; call resq_plugin.calibrate(model, clips) before you run the model."
            scale = float(self.scale.detach())
            if scale != 0:
                msg = f"{self.owner} has the scale {scale:.3g}; train the scales with a lower learning rate."
            raise CalibrationError(msg)
        self._checked_version = -1 if version is None else version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UniformQuantizer:
        """Follow the model's device; the scale keeps its type, see `HALF_TYPES`."""

        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_type, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        value = state_dict.get(prefix + "scale")
        if value is not None and not bool(torch.isfinite(value).all() & (value >= 0).all()):
            msg = f"{prefix}scale is {float(value)}; a scale is finite and not negative. The checkpoint is damaged."
            raise CheckpointError(msg)
        self._checked_version = -1
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.scale.is_meta and self.is_calibrated:
            self.check()

    def get_extra_state(self) -> Tensor:
        """The grid, which belongs to a checkpoint as much as the scale."""
        return torch.tensor(self.signed)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the grid from a checkpoint."""
        self.signed = bool(state)

    def extra_repr(self) -> str:
        """Show bits, grid and scale."""
        grid = "signed" if self.signed else "unsigned"
        scale = "meta" if self.scale.is_meta else f"{float(self.scale.detach()):.4g}"
        return f"bits={self.bits}, {grid}, scale={scale}"
