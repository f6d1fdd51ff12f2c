"""The two quantized paths of a `torch.nn` layer, with quantizers of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from resq_plugin.backends.batch_norm import FoldedNorm, fold_factors, unfold
from resq_plugin.backends.elementwise import compiled, quantize_difference
from resq_plugin.backends.folded_output import hand_over
from resq_plugin.backends.learned_rounding import LearnedRounding
from resq_plugin.backends.shared_weights import shared_weight
from resq_plugin.method import (
    ActivationQuantizer,
    KeptNumbers,
    LayerSettings,
    ResidualLayer,
    TrainableRange,
    UniformQuantizer,
    Workspace,
    compare_numbers,
    fake_quantize,
    fake_quantize_weight,
    numbers_are_settled,
    weight_scale,
)

__all__ = ["TorchResidualLayer"]

PATHS = ("keyframe", "residual")


def _key(kind: str) -> str:
    """Parameter of a layer once its scales of weights are learned; None, in no state dict, while Eq. 7 gives them."""
    return f"{kind}_weight_scale"


def _value(parameter: nn.Parameter) -> Callable[[], Tensor]:
    return parameter.detach


class TorchResidualLayer(LearnedRounding, ResidualLayer):
    """Mixin that gives a `torch.nn` layer its two quantized paths, holding Φ_a and the pool of Θ_a.

    Weights are quantized from the layer's own (batch-norm folded) Parameter, so nothing is stored twice.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    keyframe_quantizer: UniformQuantizer
    residual_quantizers: nn.ModuleList
    activation_norm: Tensor
    kept: KeptNumbers
    _stale_scales: set[str]
    """Paths whose learned scales of weights are to be those of Eq. 7 at their next use."""
    channel_dim = 1
    weight_channel_dims: tuple[int, ...] = (0,)

    def prepare(self, settings: LayerSettings) -> None:
        """Add what every backend needs beside its quantizers. The Parameters of the layer are not touched."""
        self.__dict__.update(settings=settings, _folded=[], kept=KeptNumbers(), _stale_scales=set())
        self.register_buffer("activation_norm", torch.ones((), device=self.weight.device))

    def setup(self, settings: LayerSettings) -> None:
        """Add the quantizers."""
        self.prepare(settings)
        for kind in PATHS:
            self.register_parameter(_key(kind), None)
        self.register_rounding()
        device, owner = self.weight.device, f"layer {settings.name}"
        keyframe_bits = settings.keyframe.pool[-1]
        self.keyframe_quantizer = UniformQuantizer(keyframe_bits, owner=f"{owner} (keyframe)", device=device)
        pool = settings.residual.pool if settings.residual is not None else ()
        quantizers = [UniformQuantizer(bits, owner=f"{owner} (residual, {bits} bits)", device=device) for bits in pool]
        self.residual_quantizers = nn.ModuleList(quantizers)

    def release(self) -> None:
        """Undo `prepare`, and the folding of a batch norm."""
        for norm in self._folded:
            unfold(norm)
        del self.activation_norm
        for kind in PATHS:
            self._parameters.pop(_key(kind), None)
        self.release_rounding()
        for key in ("settings", "_folded", "kept", "_stale_scales"):
            self.__dict__.pop(key)

    def grouped(self, weight: Tensor) -> Tensor:
        """View of a weight in which `weight_channel_dims` are the output channels."""
        return weight

    @property
    def folded_norm(self) -> FoldedNorm | None:
        """The batch norm that is folded into this layer, if any."""
        return self._folded[0] if self._folded else None

    def float_weight(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the batch norm folded in."""
        norm = self.folded_norm
        if norm is None:
            return self.weight, self.bias
        factor, bias = fold_factors(norm, self.bias)
        shape = [1] * self.grouped(self.weight).dim()
        for dim in self.weight_channel_dims:
            shape[dim] = self.grouped(self.weight).shape[dim]
        return (self.grouped(self.weight) * factor.view(shape)).view_as(self.weight), bias

    def weight_scale(self, kind: str, view: Tensor) -> Tensor:
        """Scale of a path's weight, broadcastable to ``view``, the `grouped` float weight: learned, or by Eq. 6, 7."""
        learned: Tensor | None = self._parameters.get(_key(kind))
        if learned is not None:
            if kind in self._stale_scales:  # a checkpoint without them brought other weights
                with torch.no_grad():
                    learned.copy_(self._scale_of_range(kind, view))
                self._stale_scales.discard(kind)
            return learned
        return self._scale_of_range(kind, view)

    def _scale_of_range(self, kind: str, view: Tensor) -> Tensor:
        channel_dims = self.weight_channel_dims if self.settings.config.weights == "channel" else ()
        return weight_scale(view, self._weight_bits(kind), channel_dims)

    def _weight_bits(self, kind: str) -> int:
        precision = self.settings.keyframe if kind == "keyframe" else self.settings.residual
        return (precision or self.settings.keyframe).weight

    def quantized_weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """ŵ = q(w; Φ_w) of the ``keyframe``, q(w; Θ_w) of the ``residual`` path, and the bias of keyframes."""
        weight, bias = self.float_weight()
        view, steps = self.grouped(weight), self.steps_of(kind)
        scale, bits = self.weight_scale(kind, view), self._weight_bits(kind)
        w_hat = fake_quantize_weight(view, scale, bits, None if steps is None else self.grouped(steps))
        return w_hat.view_as(weight), self.corrected(bias)

    def weight_scale_of(self, kind: str) -> Tensor:
        """Scale of every weight of one path, of the shape of the weight."""
        view = self.grouped(self.weight_of("float").detach())
        return self.weight_scale(kind, view).detach().expand(view.shape).reshape(self.weight.shape)

    def bias_of(self) -> Tensor | None:
        """The bias of keyframes, with the batch norm folded in."""
        return self.corrected(self._weight("float")[1])

    def numbers(self) -> list[Tensor]:
        """All tensors that weights and ranges are made of: a change of any of them changes what the layer computes.

        In training those that the layer itself moves, such as the vectors of a spectral norm, are not among them.
        """
        found = list({id(tensor): tensor for tensor in _tensors(self, buffers=not self.training)}.values())
        return found + self.folded_tensors()

    def folded_tensors(self) -> list[Tensor]:
        """Parameters and statistics of the folded batch norm, if any."""
        norm = self.folded_norm
        tensors = () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return [tensor for tensor in tensors if tensor is not None]

    def numbers_version(self) -> int:
        """Another number whenever a stream found at the start of a frame that `numbers` had changed."""
        if not numbers_are_settled():
            compare_numbers([self])
        return self.kept.version

    def _weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """Weight of a path and bias; within a frame of a stream they may have been made in a former frame."""
        shared = shared_weight(self, kind)
        if shared is not None:
            return shared
        is_own = kind == "float" and self.folded_norm is None
        if is_own or not self._may_keep():
            return self.float_weight() if kind == "float" else self.quantized_weight(kind)
        made = self.kept.made
        if kind not in made:
            with torch.inference_mode(False), torch.no_grad():
                weight, bias = self.float_weight() if kind == "float" else self.quantized_weight(kind)
                made[kind] = weight.detach(), None if bias is None else bias.detach()
        return made[kind]

    def _may_keep(self) -> bool:
        """Whether nobody can have changed the weight since the frame began, and nobody asks for its gradient."""
        if not numbers_are_settled() or self._forward_pre_hooks or "weight" not in self._parameters:
            return False
        return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.numbers()))

    @torch.no_grad()
    def learn_weight_scales(self) -> None:
        """Make the scales of weights Parameters, starting from those of Eq. 6 and 7; what is learned already stays."""
        view = self.grouped(self.float_weight()[0])
        for kind in ("keyframe",) if self.settings.residual is None else ("keyframe", "residual"):
            if _key(kind) in self._parameters and self._parameters[_key(kind)] is None:
                self.register_parameter(_key(kind), nn.Parameter(self._scale_of_range(kind, view).clone()))

    def calibrate_weights(self) -> None:
        """Start learned scales of weights anew from Eq. 6 and 7, and round to the nearest."""
        self.kept = KeptNumbers()
        self.forget_rounding()
        self._stale_scales.update(kind for kind in PATHS if self._parameters.get(_key(kind)) is not None)
        self._settle_scales()

    @torch.no_grad()
    def _settle_scales(self) -> None:
        for kind in tuple(self._stale_scales):
            self.weight_scale(kind, self.grouped(self.float_weight()[0]))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._settle_scales()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def range_parameters(self) -> dict[str, TrainableRange]:
        """Scales of activations, and those of weights that are learned."""
        found = {
            f"{name}.activation": TrainableRange((quantizer.scale,), quantizer.bits, _value(quantizer.scale))
            for name, quantizer in self._own_quantizers().items()
            if quantizer.bits
        }
        for kind in PATHS:
            parameter = self._parameters.get(_key(kind))
            if parameter is not None:
                found[f"{kind}.weight"] = TrainableRange((parameter,), self._weight_bits(kind), _value(parameter))
        return found

    def _own_quantizers(self) -> dict[str, UniformQuantizer]:
        return cast(dict[str, UniformQuantizer], self.activation_quantizers())

    def weight_of(self, kind: str) -> Tensor:
        """The weight of one path: ``float``, ``keyframe`` or ``residual``."""
        return self._weight(kind)[0]

    def activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """Φ_a and the pool of Θ_a by name."""
        pool = {f"residual.{index}": quantizer for index, quantizer in enumerate(self.residual_quantizers)}
        return cast(dict[str, ActivationQuantizer], {"keyframe": self.keyframe_quantizer, **pool})

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Tensor:
        """Hand ``input`` to the active executor, and z to the folded batch norm, if any."""
        z: Tensor = self.hand_on(super().forward(input, *args, **options))
        return z

    def hand_on(self, z: Any) -> Any:
        """Return z, which nothing but a folded batch norm may read if there is one."""
        norm = self.folded_norm
        return z if norm is None else hand_over(z, self, norm, self.settings.name)

    def dense(self, x: Tensor, **options: Any) -> Tensor:
        """The float operation with the batch norm folded in."""
        return self.linear(x, *self._weight("float"), **options)

    def quantize_keyframe(self, x: Tensor) -> Tensor:
        """x̂ = q(x; Φ_a)."""
        quantizer = self.keyframe_quantizer
        quantizer.check()
        run = compiled(fake_quantize) if self.settings.config.compile else fake_quantize
        return run(x, quantizer.scale, quantizer.bits, signed=quantizer.signed)

    def quantize_residual(
        self, x: Tensor, reference: Tensor | None = None, workspace: Workspace | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """δ̂ = q(x - reference; Θ_a) and, for a dynamic pool, the choice Π (N, H, W)."""
        if self.channel_dim == 1 and x.dim() < self.weight.dim():  # (C, H, W), as `torch.nn` allows
            reference = None if reference is None else reference[None]
            delta_hat, choice = self.quantize_residual(x[None], reference, workspace)
            return delta_hat[0], None if choice is None else choice[0]
        quantizers = cast(list[UniformQuantizer], list(self.residual_quantizers))
        for quantizer in quantizers:
            quantizer.check()
        config = self.settings.config
        run = compiled(quantize_difference) if config.compile else quantize_difference
        scales, bits = [quantizer.scale for quantizer in quantizers], [quantizer.bits for quantizer in quantizers]
        workspace = None if config.compile else workspace
        return run(x, reference, scales, bits, self.threshold(), config.policy, self.channel_dim, workspace)

    def apply_keyframe(self, x_hat: Tensor, **options: Any) -> Tensor:
        """``x̂ * q(w; Φ_w) + b``."""
        return self.linear(x_hat, *self._weight("keyframe"), **options)

    def apply_residual(self, delta_hat: Tensor, **options: Any) -> Tensor:
        """``δ̂ * q(w; Θ_w)``."""
        return self.linear(delta_hat, self._weight("residual")[0], None, **options)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self.kept = KeptNumbers()
        own = {key: value for key, value in self.state_dict().items() if key.split(".")[0] in self.own_state}
        is_float = not any(prefix + key in state_dict for key in own)
        self.follow_state(state_dict, prefix, is_float=is_float)
        absent = [kind for kind in PATHS if self._parameters.get(_key(kind)) is not None]
        absent = [kind for kind in absent if prefix + _key(kind) not in state_dict]
        if is_float:
            state_dict.update({prefix + key: value for key, value in own.items() if not self.is_forgotten(key)})
        for kind in PATHS:
            learned, ours = state_dict.get(prefix + _key(kind)), self._parameters.get(_key(kind))
            if kind in absent:  # they follow the weights that come
                self._stale_scales.add(kind)
                state_dict.setdefault(prefix + _key(kind), ours)
            elif learned is not None:
                self._stale_scales.discard(kind)
                if ours is None and _key(kind) in self._parameters:
                    fresh = torch.ones_like(learned, device=self.weight.device)
                    self.register_parameter(_key(kind), nn.Parameter(fresh))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _tensors(module: nn.Module, *, buffers: bool) -> Iterator[Tensor]:
    """The tensors of a module and its children; `nn.Module.parameters` takes too long for each frame."""
    yield from (tensor for tensor in module._parameters.values() if tensor is not None)
    if buffers:
        yield from (tensor for tensor in module._buffers.values() if tensor is not None)
    for child in module._modules.values():
        if child is not None:
            yield from _tensors(child, buffers=buffers)
