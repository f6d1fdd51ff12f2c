"""ResQ layers whose quantizers are Brevitas'.

Brevitas sees an ordinary quantized layer (Φ) with a child ``residual_path`` that holds two more quantizers (Θ).
"""

from __future__ import annotations

from typing import Any

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import Tensor, nn

from resq_brevitas._compat import (
    grid_of,
    is_correcting_bias,
    is_exporting,
    is_initialized,
    is_observing,
    is_quantizing,
    knows_weight,
    plain,
    remake,
    scaling_of,
)
from resq_brevitas.quantizers import settle
from resq_brevitas.residual_path import ResidualPath
from resq_brevitas.views import ZERO_BITS, ActivationView
from resq_plugin.backends import TorchResidualLayer
from resq_plugin.errors import ConversionError, StreamError
from resq_plugin.method import KeptNumbers, LayerSettings, ResidualLayer, TrainableRange, Workspace

__all__ = ["BrevitasResidualLayer"]

HOST_STATE = ("input_quant", "weight_quant", "bias_quant", "output_quant")
WEIGHT_STATE = ("weight_quant.", "residual_path.weight_quant.")


class BrevitasResidualLayer(TorchResidualLayer):
    """Mixin that gives one of Brevitas' quantized layers its residual path.

    Φ is ``input_quant``, ``weight_quant`` and ``bias_quant``, Θ is in ``residual_path``; ``output_quant`` acts on the
    full z_t. All values but the choice of Eq. 11 are computed by Brevitas.
    """

    own_state = (*HOST_STATE, "residual_path", "activation_norm", "_extra_state")
    missing_norm = (
        "which calibration_mode does not find; call resq_plugin.calibrate(model, clips), or configure "
        "policy={'normalize': 'none'}."
    )
    residual_path: ResidualPath | None
    input_quant: Any
    weight_quant: Any
    bias_quant: Any
    output_quant: Any

    def setup_residual(self, settings: LayerSettings, input_quant: Any, weight_quant: Any, **options: Any) -> None:
        """Add Θ to a quantized layer.

        Args:
            settings: what the layer knows of the configuration.
            input_quant: injector of Θ_a.
            weight_quant: injector of Θ_w.
            options: settings of both, such as ``input_bit_width``.
        """
        self.prepare(settings)
        if self.activation_norm.is_meta:  # Brevitas builds layers without memory and loads their weights afterwards
            self.activation_norm = torch.ones(())
        self.activation_norm.fill_(torch.nan)
        self.__dict__["_absent"] = ()
        self._hook = self.register_load_state_dict_post_hook(_forgive_absent)
        self.residual_path = None
        if settings.residual is not None:
            pool = settings.residual.pool if settings.residual.is_dynamic else ()
            if settings.residual.activation == 0:
                input_quant = None
            self.residual_path = ResidualPath(self, input_quant, weight_quant, pool, **options)
            if not self.weight.is_meta:
                self.residual_path.to(self.weight.device)
            self.residual_path.train(self.training)

    def release(self) -> None:
        """Undo what `setup_residual` did beside adding modules."""
        self.__dict__.setdefault("_folded", [])
        super().release()
        self._hook.remove()

    @property
    def folded_norm(self) -> Any:
        """The batch norm that is folded into this layer, if any; never in a layer that was made by hand."""
        return next(iter(getattr(self, "_folded", ())), None)

    # --- what the core reads -------------------------------------------------------------------------------------

    @property
    def keyframe_quantizer(self) -> ActivationView:  # type: ignore[override]
        """Φ_a."""
        return ActivationView(self.input_quant, f"layer {self.settings.name} (keyframe)")

    @property
    def residual_quantizers(self) -> list[Any]:  # type: ignore[override]
        """The pool of Θ_a, low to high bit width."""
        path, residual = self.residual_path, self.settings.residual
        if path is None or residual is None:
            return []
        proxies = iter(path.pool if residual.is_dynamic else [path.input_quant])
        owner = f"layer {self.settings.name} (residual, {{}} bits)"
        return [ActivationView(next(proxies), owner.format(bits)) if bits else ZERO_BITS for bits in residual.pool]

    def weight_scale_of(self, kind: str) -> Tensor:
        """Scale of every weight of one path, of the shape of the weight."""
        with torch.no_grad():
            scale: Tensor = self._weight_holder(kind).quant_weight().scale
        return scale.detach().expand(self.weight.shape)

    def _weight_holder(self, kind: str) -> Any:
        return self if kind == "keyframe" or self.residual_path is None else self.residual_path

    def numbers(self) -> list[Tensor]:
        """All tensors that weights and ranges are made of, also those that Brevitas makes when they are first used.

        Ranges that Brevitas is about to find, and changes with every frame, are not among them.
        """
        self.follow_weight()
        for kind in ("keyframe", "residual"):
            holder = self._weight_holder(kind)
            if is_quantizing(holder.weight_quant) and not is_initialized(holder.weight_quant):
                with torch.no_grad():
                    holder.quant_weight()
        path = self.residual_path
        proxies = [self.input_quant, *([] if path is None else [path.input_quant, *path.pool])]
        if any(is_observing(proxy) for proxy in proxies):
            own = [*self._parameters.values(), *self.folded_tensors()]
            return [tensor for tensor in own if tensor is not None]
        return super().numbers()

    def quantized_weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """The quantized weight of the ``keyframe`` or ``residual`` path, and the bias."""
        bias = self.float_weight()[1]
        if bias is not None and kind == "keyframe":
            bias = plain(self.bias_quant(bias))
        holder = self._weight_holder(kind)
        if is_exporting(holder.weight_quant) and not torch.onnx.is_in_onnx_export():  # `quant_inference_mode`
            weight = self.float_weight()[0]
            return plain(holder.weight_quant(settle(grid_of(holder.weight_quant), weight))), bias
        return plain(holder.quant_weight()), bias

    def _weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """Weight of a path and bias; exporters, and those who disable quantizers, must not be given cached numbers."""
        if kind != "float":
            proxy = self._weight_holder(kind).weight_quant
            if is_exporting(proxy) or not is_quantizing(proxy) or torch.compiler.is_compiling():
                return self.quantized_weight(kind)
        return super()._weight(kind)

    def calibrate_weights(self) -> None:
        """Let Brevitas take the weight ranges anew: Eq. 7, or what the quantizers search for."""
        for kind in ("keyframe", "residual"):
            remake(self._weight_holder(kind).weight_quant)
        with torch.no_grad():
            for kind in ("keyframe", "residual"):
                self._weight_holder(kind).quant_weight()

    def learn_weight_scales(self) -> None:
        """Do nothing: a Brevitas quantizer of weights has a Parameter from the start, or none by its own design."""

    def range_parameters(self) -> dict[str, TrainableRange]:
        """The ranges that Brevitas learns; quantizers whose scale is a statistic have none."""
        found = {}
        for name, view in self.activation_quantizers().items():
            if isinstance(view, ActivationView):
                found[f"{name}.activation"] = _trainable(view.proxy, view.bits)
        for kind in ("keyframe",) if self.residual_path is None else ("keyframe", "residual"):
            found[f"{kind}.weight"] = _trainable(self._weight_holder(kind).weight_quant, self._weight_bits(kind))
        return {name: trainable for name, trainable in found.items() if trainable.parameters}

    # --- what Brevitas reads -------------------------------------------------------------------------------------

    def quant_weight(self, quant_input: Any = None, subtensor_slice_list: Any = None) -> Any:
        """Return q(w; Φ_w), one of Brevitas' quantized tensors.

        Raises:
            ConversionError: of a part of the weight, as GPTQ and GPFQ ask for, when a batch norm is folded in.
        """
        self.follow_weight()
        if self.folded_norm is None:
            return QuantWeightBiasInputOutputLayer.quant_weight(self, quant_input, subtensor_slice_list)
        if subtensor_slice_list is not None:
            msg = (
                f"layer {self.settings.name} computes with a batch norm folded in, which Brevitas' algorithms on "
                "weights do not see; merge batch norms before the conversion: "
                "brevitas.graph.quantize.preprocess_for_quantize(model)."
            )
            raise ConversionError(msg)
        is_known = knows_weight(self.weight_quant, self.weight)  # by its place, with what q makes of the folded one
        return self.weight_quant(self.weight if is_known else self.float_weight()[0])

    def follow_weight(self) -> None:
        """Take the range of Θ_w anew when Brevitas has forgotten that of Φ_w, because it changed the weight."""
        path = self.residual_path
        if path is not None and not is_initialized(self.weight_quant) and is_initialized(path.weight_quant):
            remake(path.weight_quant)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Replace a parameter; a new weight has a new range."""
        super().register_parameter(name, param)
        path = self._modules.get("residual_path")
        if name == "weight" and path is not None:
            remake(path.weight_quant)

    def get_extra_state(self) -> Tensor:
        """The keyframe's grid, which belongs to a checkpoint as much as the range."""
        return torch.tensor(self.input_quant.is_signed is not False)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the grid from a checkpoint."""
        if self.input_quant.is_signed is not None and bool(state) != self.input_quant.is_signed:
            remake(self.input_quant, signed=bool(state))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.kept = KeptNumbers()
        own = {key: value for key, value in self.state_dict().items() if key.split(".")[0] in self.own_state}
        if not any(prefix + key in state_dict for key in own):  # a float checkpoint: weight ranges follow the weights
            kept = {key: value for key, value in own.items() if not key.startswith(WEIGHT_STATE)}
            state_dict.update({prefix + key: value for key, value in kept.items()})
            self.__dict__["_absent"] = tuple(f"{prefix}{name}." for name in (*HOST_STATE, "residual_path"))
        super(TorchResidualLayer, self)._load_from_state_dict(state_dict, prefix, *args)

    # --- what runs -----------------------------------------------------------------------------------------------

    def forward(self, input: Any, *args: Any, **options: Any) -> Any:
        """Hand ``input`` to the active executor; Brevitas' output quantizer, if any, acts on the full z_t."""
        z = ResidualLayer.forward(self, plain(input), *args, **options)
        return self.hand_on(self.pack_output(self.output_quant(z)))

    def quantize_keyframe(self, x: Tensor) -> Tensor:
        """x̂ = q(x; Φ_a)."""
        return self.keyframe_quantizer(x)

    def quantize_residual(
        self, x: Tensor, reference: Tensor | None = None, workspace: Workspace | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """δ̂ = q(x - reference; Θ_a) and, for a dynamic pool, the choice Π (N, H, W)."""
        if self._forward_hooks and is_correcting_bias(self):
            msg = (
                f"layer {self.settings.name} is under bias_correction_mode, which corrects the bias of keyframes; run "
                "frames outside a stream: model(frame)."
            )
            raise StreamError(msg)
        quantizers = self.residual_quantizers
        if len(quantizers) > 1 and not self._is_float:
            return super().quantize_residual(x, reference, workspace)
        room = None if workspace is None else workspace.like(x)
        delta = x.clone() if reference is None else torch.sub(x, reference, out=None if room is None else room[0])
        for quantizer in quantizers:
            if quantizer is not ZERO_BITS:
                delta_hat = quantizer(delta)
        if len(quantizers) > 1 or quantizers[0] is ZERO_BITS:
            delta_hat = delta if self._is_float else torch.zeros_like(delta)
        return delta_hat, None

    @property
    def _is_float(self) -> bool:
        """Whether Brevitas runs activations in float: for calibration, or because somebody disabled quantizers."""
        return is_observing(self.input_quant) or not is_quantizing(self.input_quant)


def _forgive_absent(layer: nn.Module, incompatible: Any) -> None:
    """A float checkpoint has no ranges, and that is no error."""
    absent = layer.__dict__["_absent"]
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith(absent or ("\0",))]
    layer.__dict__["_absent"] = ()


def _trainable(proxy: Any, bits: int) -> TrainableRange:
    """A range as Brevitas learns it: the Parameter is that of the end of the range, from which the scale is made."""

    def scale() -> Tensor:
        return torch.zeros(()) if not is_initialized(proxy) else scaling_of(proxy).value.detach()

    return TrainableRange(tuple(proxy.parameters()), bits, scale)
