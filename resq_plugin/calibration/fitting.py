"""The executor that fits: weights and biases of every layer in turn, on what it reads in the quantized network."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.backends import TorchResidualLayer
from resq_plugin.calibration.layer_fit import Sample, fit_keyframe, fit_residual
from resq_plugin.calibration.positions import choose_places, has_rows, input_rows, output_rows
from resq_plugin.calibration.recording import TOLERANCE
from resq_plugin.calibration.stacking import Stacked
from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError
from resq_plugin.method import Call, CountingExecutor, ResidualLayer, executing

__all__ = ["fit_layers", "require_fitting"]

logger = logging.getLogger(__name__)

PATHS = ("keyframe", "residual")


def require_fitting(layers: Mapping[str, ResidualLayer]) -> None:
    """Raise unless the layers can hold what is fitted.

    Raises:
        CalibrationError: a toolkit quantizes their weights.
    """
    for name, layer in layers.items():
        if not (isinstance(layer, TorchResidualLayer) and layer.may_learn_rounding):
            backend = layer.settings.config.backend
            fit = layer.settings.config.calibration.fit
            msg = (
                f"calibration.fit={fit!r} is of backend='torch', and layer {name} is a {type(layer).__name__} "
                f"(backend={backend!r}), whose toolkit rounds its weights. Write calibration=dict(fit='none'), and "
                "use what the toolkit has for keyframes: AIMET's Adaround on the float model before the conversion, "
                "Brevitas' bias_correction_mode or gptq_mode after it."
            )
            raise CalibrationError(msg)


@torch.no_grad()
def fit_layers(model: nn.Module, layers: Mapping[str, ResidualLayer], stacked: Stacked, config: ResQConfig) -> None:
    """Fit the weights of every layer and the bias of its keyframes, in the order in which they run.

    The batch runs once. When it reaches a layer, all before are quantized as they will be, so the layer makes good for
    their errors, too: its outputs are to be those of the float network.

    Args:
        model: a converted model in evaluation mode, whose ranges are set.
        layers: its layers by name that have ranges.
        stacked: recorded frames in one batch.
        config: of the model.

    Raises:
        CalibrationError: the network does not treat the frames of a batch each on its own.
    """
    fitting = _Fitting(layers, stacked, config)
    with executing(fitting):
        for name, args, kwargs in stacked.recording.calls:
            model.get_submodule(name)(*args, **kwargs)
    nearest = [name for name in layers if name not in fitting.fitted]
    if nearest:
        logger.warning(
            "layers %s are not fitted, because they are transposed convolutions, are called more than once in a "
            "frame, or put out too few values to tell whether that helps",
            ", ".join(nearest),
        )


class _Fitting(CountingExecutor):
    """Runs the float, the keyframe and the residual part of a batch, and fits a layer when it is called."""

    def __init__(self, layers: Mapping[str, ResidualLayer], stacked: Stacked, config: ResQConfig) -> None:
        super().__init__()
        self.layers, self.stacked, self.config = layers, stacked, config
        self.generator = torch.Generator().manual_seed(0)
        self.fits_weights = config.calibration.fit == "weights"
        self.fitted: set[str] = set()
        calls = Counter(name for name, _ in stacked.inputs[0])
        self.once = {name for name, count in calls.items() if count == 1}
        self._count = 0

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer."""
        stacked, index = self.stacked, self._count
        self._count += 1
        if not isinstance(layer, TorchResidualLayer) or call[0] not in self.layers or len(x) % stacked.blocks:
            return layer.dense(x, **options)
        size = len(x) // stacked.blocks
        self._compare(call, index, x[: stacked.frames * size].chunk(stacked.frames))
        exact, as_keyframes, as_residuals = x.split([stacked.frames * size] * 2 + [len(stacked.residuals) * size])
        z, x_hat = layer.dense(exact, **options), layer.quantize_keyframe(as_keyframes)
        references, residuals = (_rows(chosen, size, x.device) for chosen in (stacked.references, stacked.residuals))
        delta_hat = None
        if len(residuals):
            reference = (as_keyframes if self.config.reference == "float" else x_hat)[references]
            delta_hat = layer.quantize_residual(as_residuals, reference)[0]
        can_fit = call[0] in self.once and has_rows(layer)
        sample = self._sample(layer, x_hat, z) if can_fit else None
        precision = layer.settings.residual
        is_shared = (
            delta_hat is not None and precision is not None and precision.weight == layer.settings.keyframe.weight
        )
        if sample is not None and delta_hat is not None and is_shared:  # one weight: ẑ_t is that of x̂_k + δ̂
            sample += self._sample(layer, x_hat[references] + delta_hat, z[residuals])
        if sample is not None and not sample.is_enough:
            sample = None
        if sample is not None:
            fit_keyframe(layer, sample, PATHS if is_shared else PATHS[:1], weights=self.fits_weights)
            self.fitted.add(call[0])
        z_hat = layer.apply_keyframe(x_hat, **options)
        if delta_hat is None:
            return torch.cat([z, z_hat])
        if sample is not None and not is_shared and self.fits_weights:
            # Not what ẑ_k lacks: most of that no residual can tell, and it would only be noise here.
            is_exact = self.config.reference == "float"
            given = z[references] if is_exact else layer.dense(x_hat[references], **options)
            fit_residual(layer, self._sample(layer, delta_hat, z[residuals] - given))
        return torch.cat([z, z_hat, z_hat[references] + layer.apply_residual(delta_hat, **options)])

    def _sample(self, layer: ResidualLayer, x: Tensor, z: Tensor) -> Sample:
        places = choose_places(layer, z, self.config.calibration.positions, self.generator)
        return Sample.of(input_rows(layer, x, places), output_rows(layer, z, places))

    def _compare(self, call: Call, index: int, frames: tuple[Tensor, ...]) -> None:
        """Raise unless the float part of a batch is what its frames were one by one."""
        for x, inputs in zip(frames, self.stacked.inputs, strict=True):
            name, value = inputs[index] if index < len(inputs) else ("none", math.nan)
            found = float(x.double().abs().mean()) if x.numel() else 0.0
            if name != call[0] or not math.isclose(value, found, rel_tol=TOLERANCE, abs_tol=1e-12):
                msg = (
                    f"layer {call[0]} reads other values when its frames are run as one batch, which "
                    "calibration.fit does. Let the network treat the frames of a batch each on its own, or write "
                    "calibration=dict(fit='none')."
                )
                raise CalibrationError(msg)


def _rows(frames: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """Rows of the batch that belong to some frames, with ``size`` rows each."""
    first = torch.tensor(frames, dtype=torch.long, device=device)[:, None] * size
    return (first + torch.arange(size, device=device)).flatten()
