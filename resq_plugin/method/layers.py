"""The two quantized paths of one linear layer, and who decides which of them runs.

A `ResidualLayer` owns numbers only. What happens to a frame (frame-by-frame, a stream's interval, collection for
calibration, plain float) is decided by the active *executor*, one per thread of execution.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resq_plugin.config import Precision, ResQConfig
from resq_plugin.errors import CalibrationError, ConversionError, FrameError
from resq_plugin.method.workspace import Workspace

__all__ = [
    "ActivationQuantizer",
    "Executor",
    "LayerSettings",
    "ResidualLayer",
    "TrainableRange",
    "active_executor",
    "dense_execution",
    "executing",
    "frame_by_frame",
    "onlookers",
    "residual_layers",
]


@dataclass(frozen=True)
class LayerSettings:
    """What one layer knows of the configuration.

    Attributes:
        name: qualified name in the converted model; errors and state use it.
        keyframe: precision of Φ.
        residual: precision of Θ; None in a frame-by-frame model.
        config: everything that is not per layer.
    """

    name: str
    keyframe: Precision
    residual: Precision | None
    config: ResQConfig


class ActivationQuantizer(Protocol):
    """What calibration and export need of a quantizer: Eq. 1 with a range by Eq. 6."""

    bits: int
    signed: bool

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a range; always for 0 bits."""
        ...

    @property
    def scale(self) -> Tensor:
        """The scale s of Eq. 1, ()."""
        ...

    def set_range(self, r_min: float, r_max: float, *, signed: bool = True) -> None:
        """Set the range and the grid."""
        ...


@dataclass(frozen=True)
class TrainableRange:
    """The range of one quantizer, for who trains it.

    Attributes:
        parameters: what makes it, e.g. one scale: (), or one value per channel.
        bits: b of the grid.
        scale: returns the scale s that they make now, without a graph.
    """

    parameters: tuple[nn.Parameter, ...]
    bits: int
    scale: Callable[[], Tensor]


class ResidualLayer(nn.Module):
    """One linear operation with two quantized paths, Eq. 5.

    ``keyframe(x)`` is ``q(x; Φ_a) * q(w; Φ_w) + b`` and ``residual(δ)`` is ``q(δ; Θ_a) * q(w; Θ_w)``, without bias.
    A backend implements the primitives below; ``options`` are the extra arguments of the operation
    (``output_size`` of a transposed convolution).
    """

    settings: LayerSettings
    own_state: tuple[str, ...] = (
        *("keyframe_quantizer", "residual_quantizers", "activation_norm"),
        *("keyframe_weight_scale", "residual_weight_scale"),
        *("keyframe_rounding", "residual_rounding", "bias_correction"),
    )
    """What conversion adds to the layer's state dict: first parts of keys."""
    channel_dim: int
    """Dimension of the input channels of ``x``: 1 in (N, C, H, W), -1 in (N, *, C)."""
    _folded: list[Any]
    """The batch norm folded into this layer, if any; a backend without folding has no such attribute."""
    activation_norm: Tensor
    """RMS over pixels of the keyframe inputs' channel norm, (), to normalize the policy; calibration sets it."""
    missing_norm: str = ""
    """What to do where it is NaN, because a toolkit found the ranges without it; no backend else looks."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        """The bare operation ``x * weight + bias``."""
        raise NotImplementedError

    def dense(self, x: Tensor, **options: Any) -> Tensor:
        """The float operation, ``x * w + b``."""
        raise NotImplementedError

    def quantize_keyframe(self, x: Tensor) -> Tensor:
        """x̂ = q(x; Φ_a), a new tensor of the shape of ``x``."""
        raise NotImplementedError

    def quantize_residual(
        self, x: Tensor, reference: Tensor | None = None, workspace: Workspace | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """δ̂ = q(x - reference; Θ_a), no view of either; for a dynamic pool also Π, the index per pixel (N, H, W).

        Without a reference ``x`` is the residual already. δ̂ may lie in a ``workspace``, and is then lost
        with the next call.
        """
        raise NotImplementedError

    def apply_keyframe(self, x_hat: Tensor, **options: Any) -> Tensor:
        """``x̂ * q(w; Φ_w) + b``."""
        raise NotImplementedError

    def apply_residual(self, delta_hat: Tensor, **options: Any) -> Tensor:
        """``δ̂ * q(w; Θ_w)``."""
        raise NotImplementedError

    def weight_of(self, kind: str) -> Tensor:
        """Weight of a path: ``float`` (batch norm folded), ``keyframe`` (q(w; Φ_w)) or ``residual`` (q(w; Θ_w))."""
        raise NotImplementedError

    def weight_scale_of(self, kind: str) -> Tensor:
        """Scale of every weight of a path (``keyframe`` or ``residual``), of the weight's shape; for export."""
        raise NotImplementedError

    def bias_of(self) -> Tensor | None:
        """The bias b of keyframes (batch norm folded in), (C,), if any; for export."""
        raise NotImplementedError

    def calibrate_weights(self) -> None:
        """Set the weight ranges by Eq. 7, in a backend that stores them; `calibrate` calls it before its search."""

    def learn_weight_scales(self) -> None:
        """Make the ranges of weights Parameters, where they are none yet."""

    def range_parameters(self) -> dict[str, TrainableRange]:
        """Ranges that are made of Parameters, by path and then ``activation`` or ``weight``; QAT may train them."""
        return {}

    def activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """Φ_a as ``keyframe`` and the pool of Θ_a as ``residual.0``, ``residual.1``, ..., low to high bit width."""
        raise NotImplementedError

    def numbers_version(self) -> Hashable:
        """Change whenever the layer computes with other numbers, where the versions of its tensors do not tell.

        A stream asks before every frame, so it must cost next to nothing.
        """
        return None

    def threshold(self) -> Tensor | None:
        """τ of Eq. 11 in units of ‖δ‖, (); None for a static residual.

        Raises:
            CalibrationError: it is normalized by a norm that nobody has found.
        """
        if self.settings.residual is None or len(self.settings.residual.pool) == 1:
            return None
        policy, own = self.settings.config.policy, self.settings.config.policy.threshold_of(self.settings.name)
        if policy.normalize == "layer":
            if self.missing_norm and not self.activation_norm.is_meta and bool(self.activation_norm.isnan()):
                msg = f"layer {self.settings.name} (residual) has no activation norm, {self.missing_norm}"
                raise CalibrationError(msg)
            return self.activation_norm * own
        norm: Tensor = torch.linalg.vector_norm(self.weight_of("residual").detach())
        return own / norm.clamp_min(1e-30)

    def keyframe(self, x: Tensor, **options: Any) -> Tensor:
        """ẑ_k of Eq. 5 for an input of the layer's own shape."""
        return self.apply_keyframe(self.quantize_keyframe(x), **options)

    def residual(self, delta: Tensor, **options: Any) -> Tensor:
        """``q(δ; Θ_a) * q(w; Θ_w)`` of Eq. 5; the executor adds ẑ_k."""
        return self.apply_residual(self.quantize_residual(delta)[0], **options)

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Tensor:
        """Hand ``input`` to the active executor; it is named as in `torch.nn`, for calls by keyword.

        Raises:
            FrameError: it holds integers, which the float layer refuses, too.
        """
        if not (input.is_floating_point() or input.is_complex()):
            kind = str(input.dtype).removeprefix("torch.")
            msg = (
                f"layer {self.settings.name} reads {kind}, and computes in floating point; pass frames as the model "
                "was trained on, normalised: resq_plugin.video.read(path, mean=..., std=...) makes them."
            )
            raise FrameError(msg)
        if args:
            options["output_size"] = args[0]
        return active_executor()(self, input, **options)


class Executor(Protocol):
    """Runs one call of one layer: ``executor(layer, x) -> z``."""

    def __call__(self, layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        """Return z for the input ``x`` of ``layer``."""
        ...


def frame_by_frame(layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
    """The executor outside streams: every frame is quantized on its own, with Φ."""
    if not torch.compiler.is_compiling():
        for look in tuple(onlookers):
            look(layer)
    return layer.keyframe(x, **options)


onlookers: list[Callable[[ResidualLayer], None]] = []
"""Told of every call outside streams, because it may have been meant to be inside; see `outside`."""


def _dense(layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
    return layer.dense(x, **options)


class _Entry:
    """An executor, as long as it is in force."""

    def __init__(self, executor: Executor) -> None:
        self.executor: Executor | None = executor


_entries: ContextVar[tuple[_Entry, ...]] = ContextVar("resq_executors", default=())


def active_executor() -> Executor:
    """The executor of this thread of execution."""
    for entry in reversed(_entries.get()):
        if entry.executor is not None:
            return entry.executor
    return frame_by_frame


@contextmanager
def executing(executor: Executor) -> Iterator[None]:
    """Let ``executor`` run every ResQ layer called inside, in this thread of execution only."""
    entry = _Entry(executor)
    _entries.set((*(other for other in _entries.get() if other.executor is not None), entry))
    try:
        yield
    finally:
        # Generators leave their blocks in any order, and some in another context than they entered them.
        entry.executor = None
        _entries.set(tuple(other for other in _entries.get() if other.executor is not None))


@contextmanager
def dense_execution() -> Iterator[None]:
    """Run converted models in float inside, e.g. to measure agreement with the float model."""
    with executing(_dense):
        yield


def residual_layers(model: nn.Module) -> dict[str, ResidualLayer]:
    """Return the converted layers of a model by the name they were converted under.

    A layer that was made by hand, without a name, gets the one under which the model holds it.

    Raises:
        ConversionError: there are none, or two of one name.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, ResidualLayer):
            if not module.settings.name:
                module.settings = replace(module.settings, name=name)
            found.append(module)
    layers = {module.settings.name: module for module in found}
    if len(layers) < len(found):
        names = [module.settings.name for module in found]
        name = next(name for name in names if names.count(name) > 1)
        msg = (
            f"{type(model).__name__} has two ResQ layers named {name!r}, because its parts were converted one by one; "
            "revert them and convert the whole model (include=(...) selects layers)."
        )
        raise ConversionError(msg)
    if not layers:
        msg = f"{type(model).__name__} has no ResQ layer; call resq_plugin.convert(model, config) first."
        raise ConversionError(msg)
    return layers
