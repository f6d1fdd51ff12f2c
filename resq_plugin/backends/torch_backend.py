"""The plain torch backend: ResQ layers that replace `torch.nn` layers in place, class for class."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resq_plugin.backends.batch_norm import FoldedBatchNorm, fold_factors, unfold
from resq_plugin.backends.elementwise import compiled, quantize_difference
from resq_plugin.backends.wrappers import torch_class
from resq_plugin.method import (
    ActivationQuantizer,
    LayerSettings,
    ResidualLayer,
    UniformQuantizer,
    Workspace,
    fake_quantize,
    weight_scale,
)

__all__ = [
    "ResQConv1d",
    "ResQConv2d",
    "ResQConv3d",
    "ResQConvTranspose1d",
    "ResQConvTranspose2d",
    "ResQConvTranspose3d",
    "ResQLinear",
    "TorchResidualLayer",
    "attach",
    "detach",
    "supports",
]


class _WeightCache(dict[str, tuple[object, Tensor, Tensor | None]]):
    """Quantized weights by role. Copies and pickles of a layer start with an empty one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _WeightCache:
        return _WeightCache()

    def __reduce__(self) -> tuple[type[_WeightCache], tuple[()]]:
        return _WeightCache, ()


class TorchResidualLayer(ResidualLayer):
    """Mixin that gives a `torch.nn` layer its two quantized paths, holding Φ_a and the pool of Θ_a.

    Weights are quantized from the layer's own (batch-norm folded) Parameter, so nothing is stored twice.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    keyframe_quantizer: UniformQuantizer
    residual_quantizers: nn.ModuleList
    activation_norm: Tensor
    _weights: _WeightCache
    channel_dim = 1
    weight_channel_dims: tuple[int, ...] = (0,)

    def prepare(self, settings: LayerSettings) -> None:
        """Add what every backend needs beside its quantizers. The Parameters of the layer are not touched."""
        self.__dict__.update(settings=settings, _folded=[], _weights=_WeightCache())
        self.register_buffer("activation_norm", torch.ones((), device=self.weight.device))

    def setup(self, settings: LayerSettings) -> None:
        """Add the quantizers."""
        self.prepare(settings)
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
        for key in ("settings", "_folded", "_weights"):
            self.__dict__.pop(key)

    def grouped(self, weight: Tensor) -> Tensor:
        """View of a weight in which `weight_channel_dims` are the output channels."""
        return weight

    @property
    def folded_norm(self) -> FoldedBatchNorm | None:
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
        """Scale of a path's weight by Eq. 6 and 7, broadcastable to ``view``, the `grouped` float weight."""
        channel_dims = self.weight_channel_dims if self.settings.config.weights == "channel" else ()
        return weight_scale(view, self._weight_bits(kind), channel_dims)

    def _weight_bits(self, kind: str) -> int:
        precision = self.settings.keyframe if kind == "keyframe" else self.settings.residual
        return (precision or self.settings.keyframe).weight

    def quantized_weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """ŵ = q(w; Eq. 6 and 7) of the ``keyframe`` or ``residual`` path, and the float bias."""
        weight, bias = self.float_weight()
        view = self.grouped(weight)
        return fake_quantize(view, self.weight_scale(kind, view), self._weight_bits(kind)).view_as(weight), bias

    def weight_scale_of(self, kind: str) -> Tensor:
        """Scale of every weight of one path, of the shape of the weight."""
        view = self.grouped(self.weight_of("float").detach())
        return self.weight_scale(kind, view).detach().expand(view.shape).reshape(self.weight.shape)

    def bias_of(self) -> Tensor | None:
        """The bias with the batch norm folded in."""
        return self._weight("float")[1]

    def weight_sources(self, kind: str) -> list[Tensor]:  # noqa: ARG002
        """All that the weight of a path is made of: a change of any of them makes it anew."""
        sources: list[Tensor | None] = [self.weight, self.bias]
        if self.folded_norm is not None:
            norm = self.folded_norm
            sources += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return [tensor for tensor in sources if tensor is not None]

    def _weight(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """Weight of a path and bias, cached as long as no gradient is asked for."""
        tensors = self.weight_sources(kind)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return self.float_weight() if kind == "float" else self.quantized_weight(kind)
        stamp = tuple(_stamp(tensor) for tensor in tensors)
        cached = self._weights.get(kind)
        if cached is None or cached[0] != stamp:
            with torch.inference_mode(False), torch.no_grad():
                weight, bias = self.float_weight() if kind == "float" else self.quantized_weight(kind)
                cached = stamp, weight.detach(), None if bias is None else bias.detach()
                self._weights[kind] = cached
        return cached[1], cached[2]

    def weight_of(self, kind: str) -> Tensor:
        """The weight of one path: ``float``, ``keyframe`` or ``residual``."""
        return self._weight(kind)[0]

    def activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """Φ_a and the pool of Θ_a by name."""
        pool = {f"residual.{index}": quantizer for index, quantizer in enumerate(self.residual_quantizers)}
        return cast(dict[str, ActivationQuantizer], {"keyframe": self.keyframe_quantizer, **pool})

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
        self._weights.clear()
        own = {key: value for key, value in self.state_dict().items() if key.split(".")[0] in self.own_state}
        if not any(prefix + key in state_dict for key in own):  # a float checkpoint
            state_dict.update({prefix + key: value for key, value in own.items()})
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _stamp(tensor: Tensor) -> tuple[object, ...]:
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


class _Conv(TorchResidualLayer):
    _conv_forward: Any

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        z: Tensor = self._conv_forward(x, weight, bias, **options)
        return z


class ResQConv1d(_Conv, nn.Conv1d):  # type: ignore[misc]
    """`torch.nn.Conv1d` with two quantized paths."""


class ResQConv2d(_Conv, nn.Conv2d):  # type: ignore[misc]
    """`torch.nn.Conv2d` with two quantized paths."""


class ResQConv3d(_Conv, nn.Conv3d):  # type: ignore[misc]
    """`torch.nn.Conv3d` with two quantized paths."""


class _ConvTranspose(TorchResidualLayer):
    weight_channel_dims = (0, 2)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    _output_padding: Any

    def grouped(self, weight: Tensor) -> Tensor:
        return weight.view(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        spatial = weight.dim() - 2
        output_padding = self._output_padding(
            x, options.get("output_size"), self.stride, self.padding, self.kernel_size, spatial, self.dilation
        )
        operation = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        return operation(x, weight, bias, self.stride, self.padding, output_padding, self.groups, self.dilation)


class ResQConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    """`torch.nn.ConvTranspose1d` with two quantized paths."""


class ResQConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    """`torch.nn.ConvTranspose2d` with two quantized paths."""


class ResQConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    """`torch.nn.ConvTranspose3d` with two quantized paths."""


class ResQLinear(TorchResidualLayer, nn.Linear):  # type: ignore[misc]
    """`torch.nn.Linear` with two quantized paths; a pixel is a token of (N, *, C)."""

    channel_dim = -1

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        """The operation of the wrapped class with another weight and bias."""
        z: Tensor = F.linear(x, weight, bias, **options)
        return z


_CLASSES: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: ResQConv1d,
    nn.Conv2d: ResQConv2d,
    nn.Conv3d: ResQConv3d,
    nn.ConvTranspose1d: ResQConvTranspose1d,
    nn.ConvTranspose2d: ResQConvTranspose2d,
    nn.ConvTranspose3d: ResQConvTranspose3d,
    nn.Linear: ResQLinear,
}


def supports(module: nn.Module) -> bool:
    """Whether the layer is of a class this backend replaces; a subclass may compute something else, see `wrappers`."""
    return torch_class(type(module)) in _CLASSES


def attach(module: nn.Module, settings: LayerSettings) -> None:
    """Turn a layer into a ResQ layer in place: its class changes, its Parameters, hooks and owners do not."""
    original = type(module)
    module.__class__ = _CLASSES[torch_class(original)]
    module.setup(settings)  # type: ignore[operator]
    module.__dict__["_original"] = original


def detach(module: nn.Module) -> None:
    """Turn a ResQ layer back into the layer it was."""
    if not isinstance(module, TorchResidualLayer):
        return
    del module.keyframe_quantizer, module.residual_quantizers
    module.release()
    module.__class__ = module.__dict__.pop("_original")
