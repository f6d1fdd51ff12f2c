"""The side of a ResQ layer that AIMET sees: state dicts, folding of parameters, the float module behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from aimet_torch.quantization.tensor import DequantizedTensor
from torch import Tensor, nn

from resq_aimet.pool import QuantizedPixelPool
from resq_plugin.backends import FoldedNorm, TorchResidualLayer
from resq_plugin.errors import CheckpointError, ConversionError
from resq_plugin.method import KeptNumbers, LayerSettings

__all__ = ["HostedLayer"]

RESIDUAL_STATE = ("residual_path", "residual_pool", "activation_norm")
HOST_STATE = ("param_quantizers", "input_quantizers", "output_quantizers")
TIED = "residual_path.weight"


class HostedLayer(nn.Module):
    """Mixin for a ResQ layer that is an AIMET quantized module, and so part of AIMET's files and algorithms."""

    own_state = RESIDUAL_STATE + HOST_STATE
    settings: LayerSettings
    folded_norm: FoldedNorm | None
    weight: nn.Parameter
    residual_path: Any
    residual_pool: QuantizedPixelPool | None
    input_quantizers: Any
    output_quantizers: Any
    param_quantizers: Any
    _stale: bool
    _weight: Any
    kept: KeptNumbers
    float_weight: Any
    _folded: list[Any]
    _param_pre_quantizers: Any

    @property
    def is_tied(self) -> bool:
        """Whether both paths quantize one weight: until AIMET folds the quantizers into the weights, one each."""
        return self.residual_path.param_quantizers["weight"] is not None or self.settings.residual is None

    def tie(self) -> None:
        """Let the residual path have the very weight Parameter of the layer, which somebody may have replaced."""
        if not self.is_tied:
            return
        if "weight" in self._parameters:
            self.residual_path._parameters["weight"] = self.weight
        else:  # a parametrization or a hook makes it, which may have a graph
            self.residual_path._parameters["weight"] = nn.Parameter(self.weight.detach(), requires_grad=False)

    def _compute_param_encodings(self, overwrite: bool) -> None:
        """Compute weight encodings when AIMET calibrates; it also asks at every call, when `calibrate` may be due."""
        self.tie()
        if overwrite and self.folded_norm is not None:
            msg = (
                f"layer {self.settings.name} computes with a batch norm folded in, which AIMET's compute_encodings "
                "does not see; call resq_plugin.calibrate(model, clips)."
            )
            raise ConversionError(msg)
        if overwrite:
            self.compute_missing_encodings(overwrite=True)

    def compute_missing_encodings(self, *, overwrite: bool = False) -> None:
        """Let AIMET compute the encodings of the layer's own parameters."""
        super()._compute_param_encodings(overwrite=overwrite)  # type: ignore[misc]

    def fold_param_quantizers(self) -> None:
        """Put the quantized weights in place of the weights, one for each path, for good.

        Raises:
            ConversionError: a batch norm is folded in, whose own parameters would be lost.
        """
        if self.folded_norm is not None:
            msg = (
                f"layer {self.settings.name} computes with a batch norm folded in; fold batch norms with "
                "aimet_torch.batch_norm_fold.fold_all_batch_norms(model, ...) before the conversion."
            )
            raise ConversionError(msg)
        paths = {"keyframe": self, "residual": self.residual_path}
        chosen = {kind: path for kind, path in paths.items() if path.param_quantizers["weight"] is not None}
        weights = {kind: self._weight(kind)[0].detach().clone().as_subclass(DequantizedTensor) for kind in chosen}
        for kind, path in chosen.items():
            weights[kind].encoding = path.param_quantizers["weight"].get_encodings()
            path.weight = nn.Parameter(weights[kind], requires_grad=path.weight.requires_grad)
            path.param_quantizers["weight"] = None
        super().fold_param_quantizers()  # type: ignore[misc]

    @contextmanager
    def _unfold_param_quantizers(self) -> Iterator[None]:
        """What AIMET's exporters enter first: for as long as they work, a folded batch norm is in the Parameters."""
        with self._folded_for_good(), super()._unfold_param_quantizers():  # type: ignore[misc]
            yield

    @contextmanager
    def _folded_for_good(self) -> Iterator[None]:
        folded: list[Any] = list(getattr(self, "_folded", ()))
        if not folded:
            yield
            return
        before = dict(self._parameters)
        self._parameters.update(zip(("weight", "bias"), map(nn.Parameter, self.float_weight()), strict=True))
        holders = [holder for holder in (self.param_quantizers, self._param_pre_quantizers) if "bias" not in holder]
        for holder in holders:
            holder["bias"] = None
        self._folded.clear()
        try:
            yield
        finally:
            for holder in holders:
                del holder["bias"]
            self._folded.extend(folded)
            self._parameters.update(before)
            self.tie()

    def get_original_module(self) -> nn.Module:
        """Return the float layer, which shares the Parameters; AIMET's exporters and algorithms ask for it."""
        original: nn.Module = super().get_original_module()  # type: ignore[misc]
        for child in ("residual_path", "residual_pool"):
            original._modules.pop(child, None)
        original._buffers.pop("activation_norm", None)
        return original

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state; a shared weight is in it once, as some file formats allow no more."""
        state = super().state_dict(*args, **kwargs)
        if self.is_tied:
            state.pop(kwargs.get("prefix", "") + TIED, None)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.kept = KeptNumbers()
        own = {key: value for key, value in self.state_dict().items() if key.split(".")[0] in self.own_state}
        for group in (RESIDUAL_STATE, HOST_STATE):
            keys = {prefix + key: value for key, value in own.items() if key.split(".")[0] in group}
            is_absent = not keys.keys() & state_dict.keys()  # a float checkpoint, or one of a sim not converted
            if is_absent:
                state_dict.update(keys)
            if group is HOST_STATE and prefix + "weight" in state_dict:
                self._stale = is_absent
        if self.is_tied and prefix + "weight" in state_dict:
            state_dict[prefix + TIED] = state_dict[prefix + "weight"]
        elif self.is_tied and "weight" not in self._parameters:
            state_dict[prefix + TIED] = self.residual_path.weight
        for key, value in list(state_dict.items()):
            if key.startswith(prefix) and isinstance(value, dict):
                state_dict[key] = dict(value)  # AIMET takes its entries out while reading
            elif key.removeprefix(prefix) in own and key.endswith((".min", ".max")):
                _require_finite(key, value)
        super(TorchResidualLayer, self)._load_from_state_dict(state_dict, prefix, *args)


def _require_finite(key: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        msg = f"{key} holds values that are not finite. The checkpoint is damaged."
        raise CheckpointError(msg)
