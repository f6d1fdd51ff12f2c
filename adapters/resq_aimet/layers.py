"""ResQ layers whose quantizers are AIMET's.

AIMET sees two ordinary quantized modules that share a weight: ``conv`` (Φ) and ``conv.residual_path`` (Θ).
"""

from __future__ import annotations

from typing import Any

import torch
from aimet_torch.nn import QuantizationMixin
from aimet_torch.quantization.base import QuantizerBase
from torch import Tensor, nn

from resq_aimet._compat import is_exporting, is_observing, plain
from resq_aimet.hosted import HostedLayer
from resq_aimet.pool import PixelPool
from resq_aimet.quantizers import ActivationView, NoQuantizer, new_quantizer
from resq_plugin.backends import TorchResidualLayer
from resq_plugin.method import LayerSettings, ResidualLayer, TrainableRange, Workspace, weight_range

__all__ = ["AimetResidualLayer"]


class AimetResidualLayer(HostedLayer, TorchResidualLayer):
    """Mixin that gives an AIMET quantized module its residual path.

    Φ_a is ``input_quantizers[0]`` and Φ_w ``param_quantizers["weight"]``. The child ``residual_path`` is a quantized
    module of the same kind without bias that shares the weight Parameter and holds Θ_w and a static Θ_a; the child
    ``residual_pool`` holds a dynamic one. Values are computed as by the torch backend from AIMET's scales, so both
    give the same integers: AIMET's own kernel multiplies by 1 / s, which now and then rounds to the neighbour. In
    ``hardware`` placement Φ is AIMET's own, kernels included.
    """

    placement: str
    missing_norm = (
        "which AIMET's own files do not hold, as they hold quantizers only; call "
        "resq_plugin.calibrate(model, clips), or load it: resq_plugin.load_ranges(model, path)."
    )

    def setup(self, settings: LayerSettings, placement: str = "paper") -> None:
        """Add Θ, and in ``paper`` placement Φ. The Parameters of the layer are not touched."""
        self.prepare(settings)
        self.__dict__.update(placement=placement, _stale=False)
        self.activation_norm.fill_(torch.nan)
        device = self.weight.device
        if placement == "paper":
            bits = settings.keyframe.pool[-1]
            self.input_quantizers[0] = new_quantizer(bits, device=device)
            self.output_quantizers[0] = None
            frozen = self.param_quantizers["weight"]
            if frozen is None or frozen.is_overwrite_allowed():
                self.param_quantizers["weight"] = self._new_weight_quantizer(settings.keyframe.weight)
        self.residual_path = QuantizationMixin.from_module(self._float_twin())
        self.residual_pool = None
        if settings.residual is not None:
            self.residual_path.param_quantizers["weight"] = self._new_weight_quantizer(settings.residual.weight)
            if settings.residual.is_dynamic:
                self.residual_pool = QuantizationMixin.from_module(PixelPool())
                self.residual_pool.hold(settings.residual.pool)
                self.residual_pool.to(device)
            elif settings.residual.activation:
                self.residual_path.input_quantizers[0] = new_quantizer(settings.residual.activation, device=device)

    def _float_twin(self) -> nn.Module:
        """A float layer of the same kind that shares the weight and has no bias."""
        raise NotImplementedError

    def _sharing(self, sizes: tuple[Any, ...], settings: dict[str, Any]) -> nn.Module:
        # The __dict__ must not be copied: hooks would be shared, which AIMET's exporters cannot bear.
        twin: nn.Module = QuantizationMixin.qcls_to_cls[type(self)](*sizes, bias=False, device="meta", **settings)
        twin.weight = self.weight
        return twin

    def _new_weight_quantizer(self, bits: int) -> QuantizerBase:
        """A quantizer with one scale, or one per output channel."""
        view = self.grouped(self.weight)
        shape, block_size = (), None
        if self.settings.config.weights == "channel":
            sizes = [view.shape[dim] if dim in self.weight_channel_dims else 1 for dim in range(view.dim())]
            # Of a transposed convolution (groups, in / groups, out / groups, ...): AIMET knows blocks of rows.
            shape = tuple(sizes) if view.dim() == self.weight.dim() else (sizes[0], *sizes[2:])
            if shape[0] > 1 and view.dim() > self.weight.dim():
                block_size = (view.shape[1], 1, *view.shape[3:])
        return new_quantizer(bits, shape, block_size=block_size, device=self.weight.device)

    # --- what the core reads -------------------------------------------------------------------------------------

    @property
    def keyframe_quantizer(self) -> ActivationView | NoQuantizer:  # type: ignore[override]
        """Φ_a."""
        if self.placement == "hardware":
            return NoQuantizer(self.settings.keyframe.pool[-1], is_upstream=True)
        return ActivationView(self.input_quantizers[0], f"layer {self.settings.name} (keyframe)", self._advice)

    @property
    def residual_quantizers(self) -> list[ActivationView | NoQuantizer]:  # type: ignore[override]
        """The pool of Θ_a, low to high bit width."""
        owner = f"layer {self.settings.name} (residual, {{}} bits)"
        return [
            NoQuantizer()
            if quantizer is None
            else ActivationView(quantizer, owner.format(quantizer.bitwidth), self._advice)
            for quantizer in self._residual_holders()
        ]

    @property
    def _advice(self) -> str:
        """What finds ranges: of a layer of a sim, its own call."""
        is_of_sim = self.__dict__.get("_before") is not None
        return "resq.compute_encodings(clips)" if is_of_sim else ActivationView.advice

    def _residual_holders(self) -> list[Any]:
        if self.settings.residual is None:
            return []
        holder = self.residual_path if self.residual_pool is None else self.residual_pool
        return list(holder.input_quantizers)

    def weight_scale(self, kind: str, view: Tensor) -> Tensor:
        """AIMET's scale, broadcastable to ``view``, the `grouped` float weight."""
        quantizer = self._ready(kind)
        scale: Tensor = self._weight_path(kind).weight.encoding.scale if quantizer is None else quantizer.get_scale()
        return scale.unsqueeze(1) if scale.dim() and view.dim() > scale.dim() else scale

    def _weight_bits(self, kind: str) -> int:
        return int(self._weight_quantizer(kind).bitwidth)

    def _weight_path(self, kind: str) -> Any:
        return self if kind == "keyframe" or self.settings.residual is None else self.residual_path

    def _weight_quantizer(self, kind: str) -> Any:
        """The weight quantizer of a path; None once AIMET has folded it into the weight."""
        return self._weight_path(kind).param_quantizers["weight"]

    def _ready(self, kind: str) -> Any:
        quantizer = self._weight_quantizer(kind)
        if quantizer is not None and (self._stale or not quantizer.is_initialized()):
            self.calibrate_weights()
        return quantizer

    def numbers(self) -> list[Tensor]:
        """All tensors that weights and ranges are made of, those included that are made when they are first used."""
        self.tie()
        for kind in ("keyframe", "residual"):
            self._ready(kind)
        found = super().numbers()
        if self.is_tied and "weight" not in self._parameters:  # made of others, and not yet for this frame
            found = [tensor for tensor in found if tensor is not self.residual_path.weight]
        return [plain(tensor) for tensor in found]

    def float_weight(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the batch norm folded in."""
        weight, bias = super().float_weight()
        return plain(weight), bias

    def quantized_weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """The quantized weight of the ``keyframe`` or ``residual`` path, and the bias."""
        if not is_exporting():
            self.tie()
        quantizer = self._ready(kind)
        if quantizer is None:
            return plain(self._weight_path(kind).weight), self.float_weight()[1]
        if self._is_foreign(kind):
            weight, bias = (self.weight, self.bias) if self.folded_norm is None else self.float_weight()
            of_bias = dict(self.param_quantizers).get("bias")
            return plain(quantizer(weight)), bias if bias is None or of_bias is None else plain(of_bias(bias))
        return super().quantized_weight(kind)

    def _weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """Weight of a path and bias; an exporter must see the quantizers, not cached numbers."""
        return self.quantized_weight(kind) if is_exporting() and kind != "float" else super()._weight(kind)

    def _is_foreign(self, kind: str) -> bool:
        """Whether AIMET's own kernels compute q(w): in hardware placement, and for encodings that it froze."""
        if is_exporting():
            return True
        frozen = not self._weight_quantizer(kind).is_overwrite_allowed()
        return kind == "keyframe" and (self.placement == "hardware" or frozen)

    @torch.no_grad()
    def calibrate_weights(self) -> None:
        """Set the weight ranges by Eq. 7, but none that AIMET holds frozen."""
        self._stale = False
        view = self.grouped(self.float_weight()[0])
        for kind in ("keyframe", "residual"):
            quantizer = self._weight_quantizer(kind)
            if quantizer is None or not quantizer.is_overwrite_allowed():
                continue
            if kind == "keyframe" and self.placement == "hardware":
                self.compute_missing_encodings()
                continue
            channel_dims = self.weight_channel_dims if self.settings.config.weights == "channel" else ()
            low, high = weight_range(view, channel_dims)
            half = torch.maximum(high, -low).reshape(quantizer.shape)
            quantizer.set_range(-half, half)

    def learn_weight_scales(self) -> None:
        """Do nothing: AIMET's ranges of weights are Parameters from the start."""

    def range_parameters(self) -> dict[str, TrainableRange]:
        """Minimum and maximum of AIMET's quantizers, but of none that AIMET holds frozen."""
        found = {
            f"{name}.activation": _trainable(view.quantizer)
            for name, view in self.activation_quantizers().items()
            if isinstance(view, ActivationView)
        }
        for kind in ("keyframe",) if self.settings.residual is None else ("keyframe", "residual"):
            quantizer = self._weight_quantizer(kind)
            if quantizer is not None and quantizer.is_overwrite_allowed():
                found[f"{kind}.weight"] = _trainable(quantizer)
        return found

    # --- what runs -----------------------------------------------------------------------------------------------

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Tensor:
        """Hand ``input`` to the active executor. AIMET's own quantizers act on every frame's full x_t and z_t."""
        x, entry, exit_ = plain(input), self.input_quantizers[0], self.output_quantizers[0]
        if self.placement == "hardware" and entry is not None:
            x = plain(entry(x))
        z = ResidualLayer.forward(self, x, *args, **options)
        return self.hand_on(z if exit_ is None else exit_(z))

    def quantize_keyframe(self, x: Tensor) -> Tensor:
        """x̂ = q(x; Φ_a); in hardware placement ``x`` is quantized upstream."""
        if self.placement == "hardware":
            return x.clone()
        quantizer = self.input_quantizers[0]
        if is_observing(quantizer) or is_exporting():
            return plain(quantizer(x))
        return super().quantize_keyframe(x)

    def quantize_residual(
        self, x: Tensor, reference: Tensor | None = None, workspace: Workspace | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """δ̂ = q(x - reference; Θ_a) and, for a dynamic pool, the choice Π (N, H, W)."""
        holders = self._residual_holders()
        if len(holders) == 1 and holders[0] is not None and (is_observing(holders[0]) or is_exporting()):
            return plain(holders[0](x if reference is None else x - reference)), None
        if any(is_observing(quantizer) for quantizer in holders):
            return self.residual_pool(x.clone() if reference is None else x - reference), None
        return super().quantize_residual(x, reference, workspace)


def _trainable(quantizer: QuantizerBase) -> TrainableRange:
    def scale() -> Tensor:
        if not quantizer.is_initialized():
            return torch.zeros(())
        # Not get_scale(), which hides a range that has collapsed.
        span: Tensor = quantizer.max.detach() - quantizer.min.detach()
        return span / (2**quantizer.bitwidth - 1)

    return TrainableRange(tuple(quantizer.parameters()), int(quantizer.bitwidth), scale)
