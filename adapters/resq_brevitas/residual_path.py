"""The quantizers Θ of a layer, as a module that Brevitas' calibration, algorithms and exporters know how to treat."""

from __future__ import annotations

from typing import Any

from brevitas.nn.mixin import QuantInputMixin, QuantLayerMixin, QuantWeightMixin
from torch import Tensor, nn

__all__ = ["ResidualPath"]


class ResidualPath(QuantWeightMixin, QuantInputMixin, QuantLayerMixin, nn.Module):
    """Θ_w and Θ_a beside a layer, whose weight it quantizes a second time without owning it.

    Brevitas asks the module that a weight quantizer belongs to for ``quant_weight()``, so Θ_w needs one of its own.

    Attributes:
        input_quant: a static Θ_a; without effect if ``pool`` is not empty, or for 0 bits.
        weight_quant: Θ_w.
        pool: Θ_a of Dynamic-ResQ, low to high bit width without 0.
    """

    input_quant: Any
    weight_quant: Any
    pool: nn.ModuleList

    def __init__(self, layer: Any, input_quant: Any, weight_quant: Any, pool: tuple[int, ...] = (), **kw: Any) -> None:
        nn.Module.__init__(self)
        QuantLayerMixin.__init__(self, return_quant_tensor=False)
        self._layer = [layer]  # in a list, so that it is no child
        QuantInputMixin.__init__(self, None if pool else input_quant, **kw)
        QuantWeightMixin.__init__(self, weight_quant, **kw)
        options = {key.removeprefix("input_"): value for key, value in kw.items() if key.startswith("input_")}
        members = [input_quant.let(**options | {"bit_width": bits}) for bits in pool if bits]
        self.pool = nn.ModuleList(member.proxy_class(self, member) for member in members)

    @property
    def weight(self) -> Tensor:
        """The float weight of the layer, batch norm folded in."""
        weight: Tensor = self._layer[0].float_weight()[0]
        return weight

    @property
    def weight_orig(self) -> Tensor:
        """The weight before GPTQ or GPFQ, if the layer keeps it."""
        original: Tensor = self._layer[0].weight_orig
        return original

    @property
    def bias(self) -> None:
        """None: the bias is added once, at the keyframe."""
        return

    @property
    def out_channels(self) -> int:
        """Output channels, for the shape of scales."""
        layer = self._layer[0]
        return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)

    @property
    def groups(self) -> int:
        """Groups of the layer."""
        return int(getattr(self._layer[0], "groups", 1))

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return bool(getattr(self._layer[0], "transposed", False))

    @property
    def output_channel_dim(self) -> int:
        """Dimension of the weight that holds them."""
        return int(self._layer[0].output_channel_dim)

    @property
    def channelwise_separable(self) -> bool:
        """Whether the layer is depthwise."""
        return bool(self._layer[0].channelwise_separable)

    @property
    def requires_export_handler(self) -> bool:
        """Whether anything is quantized here."""
        return bool(self.input_quant.is_quant_enabled or self.weight_quant.is_quant_enabled)

    def quant_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Return q(w; Θ_w), one of Brevitas' quantized tensors."""
        self._layer[0].follow_weight()
        return super().quant_weight(*args, **kwargs)

    def extra_repr(self) -> str:
        """Show the pool."""
        return "dynamic pool" if len(self.pool) else ""
