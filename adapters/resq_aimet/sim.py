"""ResQ in AIMET's own flow: a `QuantizationSimModel` gets a residual path in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from aimet_torch import QuantizationSimModel
from aimet_torch.quantization.base import QuantizerBase
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resq_aimet._compat import guard_graph, release_graph
from resq_aimet.backend import placing
from resq_aimet.quantizers import NoQuantizer
from resq_plugin import convert as convert_model
from resq_plugin import revert as revert_model
from resq_plugin.calibration import Clip, calibrate, checked_frames
from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError, ConfigError, ConversionError, nearest
from resq_plugin.method import LayerSettings, Stream, residual_layers, stream, telling_unfit_frames

__all__ = ["PLACEMENTS", "ResQSim", "convert"]

logger = logging.getLogger(__name__)

PLACEMENTS = ("paper", "hardware")

Places = list[tuple[Any, Any, QuantizerBase]]
"""Quantizers and where they were: the list or dict of modules and the key in it."""


class ResQSim:
    """A sim whose linear layers have a residual path. Make it with `convert`.

    Attributes:
        sim: AIMET's `QuantizationSimModel`; its ``model`` is the converted model, for QAT and evaluation.
        placement: ``paper`` or ``hardware``.
    """

    def __init__(self, sim: QuantizationSimModel, placement: str, removed: Places) -> None:
        self.sim = sim
        self.placement = placement
        self._removed = removed

    def compute_encodings(
        self, clips: Iterable[Clip], *, run: Callable[[Tensor], Any] | None = None, progress: bool = False
    ) -> None:
        """Find the encodings of Φ and Θ by the line search of Eq. 8, see `resq_plugin.calibrate`.

        In hardware placement Φ is AIMET's: ``sim.compute_encodings`` is run on the clips' frames if it has not been
        run before, and the search only sets Θ.

        Args:
            clips: consecutive frames, as (T, C, H, W) tensors or lists of frames (N, C, H, W).
            run: what runs one frame, when it is not ``sim.model(frame)``.
            progress: show a progress bar.

        Raises:
            CalibrationError: the clips are unusable; what the search sets stays as it was.
        """
        if callable(clips):
            msg = (
                "compute_encodings of a ResQ sim takes clips, not a callback as AIMET's: write "
                "resq.compute_encodings([clip, ...]) with clips of consecutive frames, (T, C, H, W) each."
            )
            raise CalibrationError(msg)
        if self.placement == "hardware":
            clips = list(clips)
            self._let_aimet_calibrate(clips, run)
        with self._in_float():
            calibrate(self.sim.model, clips, run=run, progress=progress)
        if self.placement == "paper":  # a layer that no frame reached is an AIMET module again, and stays float
            self._removed += _take(_between(self.sim))

    def _let_aimet_calibrate(self, clips: list[Clip], run: Callable[[Tensor], Any] | None) -> None:
        theta = {
            quantizer
            for layer in residual_layers(self.sim.model).values()
            for child in (layer.residual_path, layer.residual_pool)
            if child is not None
            for quantizer in child.modules()
        }
        if all(quantizer.is_initialized() for quantizer in self.sim.quantizers() if quantizer not in theta):
            return

        frames = [checked_frames(clip, index) for index, clip in enumerate(clips)]

        def show(model: nn.Module) -> None:
            for frame in chain.from_iterable(frames):
                with telling_unfit_frames(model, frame, CalibrationError, run):
                    (run or model)(frame)

        self.sim.compute_encodings(show)

    @contextmanager
    def _in_float(self) -> Iterator[None]:
        """Take AIMET's quantizers between the layers away for a while, as the search of Eq. 8 runs in float."""
        kinds = ["output_quantizers"] + ["input_quantizers"] * (self.placement == "hardware")
        own = [getattr(layer, kind) for layer in residual_layers(self.sim.model).values() for kind in kinds]
        taken = _take([*_between(self.sim), *own])
        try:
            yield
        finally:
            _put_back(taken)

    def stream(self, **options: Any) -> Stream:
        """Open one video, see `resq_plugin.stream`.

        Raises:
            CalibrationError: the sim has no encodings.
        """
        self._require_encodings()
        return stream(self.sim.model, **options)

    def export(self, path: Any, frames: Any, **options: Any) -> Any:
        """Write keyframe and residual graph, encodings and manifest, see `resq_plugin.export.export_model`."""
        self._require_encodings()
        from resq_plugin.export import export_model  # noqa: PLC0415  # takes onnx, an extra

        return export_model(self.sim.model, frames, path, **options)

    def _require_encodings(self) -> None:
        """Raise where nothing was found yet, which AIMET's own quantizers would tell with less advice."""
        views = [view for layer in residual_layers(self.sim.model).values() for view in _ranges(layer)]
        if views and not any(view.is_calibrated for view in views):
            msg = "the sim has no encodings; call resq.compute_encodings(clips), clips of consecutive frames, before."
            raise CalibrationError(msg)

    def revert(self) -> QuantizationSimModel:
        """Undo `convert` in place and return the sim, with the quantizers it had before."""
        revert_model(self.sim.model)
        _put_back(self._removed)
        release_graph(self.sim.connected_graph)
        return self.sim


def convert(sim: QuantizationSimModel, config: ResQConfig | str, *, placement: str = "paper") -> ResQSim:
    """Give every selected linear layer of a sim a residual path, in place.

    Args:
        sim: AIMET's simulation of a float model, calibrated or not. Fold batch norms, equalize, apply AdaRound or
            SeqMSE and set mixed precision before.
        config: the configuration, or the paper's notation such as ``"W8A8->W4A4"``; its ``backend`` does not matter.
        placement: ``paper`` puts activation quantizers at the inputs of the layers and nowhere else; ``hardware``
            leaves Φ to AIMET's supergroups, so that outside a stream the sim computes what it did.

    Returns:
        The sim with its `ResQSim.compute_encodings`, `ResQSim.stream` and `ResQSim.export`.

    Raises:
        ConversionError: no sim, already converted, or nothing to convert; the sim is unchanged.
        ConfigError: unknown placement, or a precision other than the sim's where AIMET's encodings stay.
    """
    if not isinstance(sim, QuantizationSimModel):
        msg = (
            f"resq_aimet.convert takes AIMET's QuantizationSimModel, not a {type(sim).__name__}; write "
            "sim = aimet_torch.QuantizationSimModel(model, dummy_input) and convert(sim, ...), or for a float model "
            "resq_plugin.convert(model, ResQConfig.parse('W8A8->W4A4', backend='aimet'))."
        )
        raise ConversionError(msg)
    if placement not in PLACEMENTS:
        msg = f"placement={placement!r} is not allowed; write 'paper' or 'hardware'.{nearest(placement, PLACEMENTS)}"
        raise ConfigError(msg)
    if isinstance(config, str):
        config = ResQConfig.parse(config)
    if config.backend != "aimet":
        config = config.replace(backend="aimet")
    _warn_of_batch_norms(sim)
    with placing(placement):
        convert_model(sim.model, config)
    try:
        for layer in residual_layers(sim.model).values():
            _check_precision(layer, placement)
    except ConfigError:
        revert_model(sim.model)
        raise
    removed = _take(_between(sim)) if placement == "paper" else []
    guard_graph(sim.connected_graph)
    return ResQSim(sim, placement, removed)


def _ranges(layer: Any) -> list[Any]:
    """The activation quantizers of a layer that must be calibrated."""
    return [view for view in layer.activation_quantizers().values() if not isinstance(view, NoQuantizer)]


def _between(sim: QuantizationSimModel) -> list[nn.Module]:
    """The quantizer lists and dicts of all modules that have no residual path."""
    inside = {part for layer in residual_layers(sim.model).values() for part in layer.modules()}
    rest = [module for module in sim.qmodules() if module not in inside]
    kinds = ("input_quantizers", "output_quantizers", "param_quantizers")
    return [getattr(module, kind) for module in rest for kind in kinds]


def _take(holders: Iterable[Any]) -> Places:
    taken: Places = []
    for holder in holders:
        for key, entry in list(holder.items() if isinstance(holder, nn.ModuleDict) else enumerate(holder)):
            if isinstance(entry, QuantizerBase):
                taken.append((holder, key, entry))
                holder[key] = None
            elif entry is not None:  # a list in the list, of modules with several inputs in one argument
                taken += _take([entry])
    return taken


def _put_back(taken: Places) -> None:
    for holder, key, quantizer in taken:
        holder[key] = quantizer


def _check_precision(layer: Any, placement: str) -> None:
    """Raise unless the encodings that stay AIMET's have the configured bit widths."""
    settings: LayerSettings = layer.settings
    weight, activation = layer.param_quantizers["weight"], layer.input_quantizers[0]
    found_weight = None if weight is None else getattr(weight, "bitwidth", None)
    found = f"W{found_weight}A{settings.keyframe.activation if activation is None else activation.bitwidth}"
    if found_weight is None:
        msg = (
            f"layer {settings.name} has no integer weight quantizer in the sim; write exclude=({settings.name!r},), "
            "or placement='paper', which makes one."
        )
        raise ConfigError(msg)
    if found != str(settings.keyframe):
        residual = "" if settings.residual is None else f"->{settings.residual}"
        msg = (
            f"layer {settings.name} is {found} in the sim and its encoding stays (placement={placement!r}), but the "
            f"configuration says {settings.keyframe}; write overrides={{{settings.name!r}: '{found}{residual}'}}, or "
            "make the sim with other bit widths."
        )
        raise ConfigError(msg)


def _warn_of_batch_norms(sim: QuantizationSimModel) -> None:
    norms = [name for name, module in sim.model.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        logger.warning(
            "batch norms %s act on the full output of every frame; those behind a layer are better folded, before the "
            "sim is made: aimet_torch.batch_norm_fold.fold_all_batch_norms(model, None, dummy_input=x)",
            ", ".join(norms),
        )
