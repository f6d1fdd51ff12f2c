"""What calibrations of one model on the same clips share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from operator import length_hint

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from resq_plugin.calibration.clips import Clip, longest_interval
from resq_plugin.calibration.collection import Collected, Run, Start, fold_on
from resq_plugin.calibration.fingerprint import fingerprint
from resq_plugin.conversion import float_state_dict, folded_pairs, set_folded_pairs
from resq_plugin.errors import CalibrationError
from resq_plugin.method import ResidualLayer

__all__ = ["Statistics"]

LOOKED_AT = 16
"""Clips whose first and last frames tell them from others."""


class Statistics:
    """What calibrations of one model on the same clips have in common, kept from each to the next.

    What layers read in float does not depend on precisions, and neither does the best range of a quantizer depend on
    those of other quantizers. So clips are run once for all precisions, and a range that was searched is not searched
    again, wherever it depends on the same: layer, quantized weight, bits, grid, and for residuals to a quantized
    reference the keyframe's range. The ranges are exactly those that `calibrate` finds without.

    Kept are, in memory and on the model's device, the windows of one look at the clips: those that any calibration
    holds while it runs (``calibration.positions`` outputs of every layer per kind of frame), with the frames of one
    interval and of ``calibration.recheck`` pairs, and a few numbers per range. A configuration that looks at other
    frames (another T where clips are longer, another reference where one is running, other layers or sizes of the
    sample) replaces them: calibrate settings that look alike one after another, those with residuals first.

    >>> from resq_plugin import calibrate, convert, revert
    >>> import torch
    >>> net, clips = torch.nn.Conv2d(3, 4, 3).eval(), list(torch.randn(2, 3, 3, 8, 8))
    >>> shared = Statistics()
    >>> for precision in ("W8A8->W4A4", "W8A8->W8A4", "W8A8"):
    ...     calibrate(convert(net, precision), clips, statistics=shared)
    ...     model = revert(net)
    """

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._looked: tuple[bool, Hashable] | None = None
        self._collected = Collected()
        self._folds: tuple[Hashable, dict[str, str]] | None = None

    def collected(
        self,
        model: nn.Module,
        layers: Mapping[str, ResidualLayer],
        clips: Iterable[Clip],
        collect: Callable[[], Collected],
        run: Run,
        start: Start | None,
    ) -> Collected:
        """Return what is there already, or collect it.

        Args:
            model: a converted model in evaluation mode.
            layers: its layers by name.
            clips: consecutive frames each.
            collect: looks at the clips.
            run: what runs one frame.
            start: what begins a video, if anything.

        Raises:
            CalibrationError: the statistics are of another model, other weights or other clips; or clips can be
                looked at only once.
        """
        if not isinstance(clips, Sequence):
            msg = (
                f"clips are a {type(clips).__name__}, which can be looked at only once; statistics are shared by "
                "calibrations on the same clips, so pass a list: clips = list(clips)."
            )
            raise CalibrationError(msg)
        self._check(model, clips)
        if self._looked is not None:
            if start is not None:
                start()
            self._fold(model, layers, run, start)
            (had_residuals, had), (residuals, looks) = self._looked, _look(model, layers, clips, start)
            if had == looks and had_residuals == residuals:
                return self._collected
            if had == looks and had_residuals and self._collected.of_keyframes is not None:
                return self._collected.of_keyframes
        self._looked, self._collected = None, Collected()  # frees the old ones before the new ones come
        before = _foldable(layers, model)
        self._collected = collect()
        self._folds = before, folded_pairs(model)
        self._looked = _look(model, layers, clips, start)
        return self._collected

    def _fold(self, model: nn.Module, layers: Mapping[str, ResidualLayer], run: Run, start: Start | None) -> None:
        """Fold what was folded before at the look, which spares a frame; of other layers that has to be found."""
        before = _foldable(layers, model)
        if self._folds is not None and self._folds[0] == before:
            set_folded_pairs(model, self._folds[1])
        else:
            fold_on(model, self._collected.first, run, start)

    def _check(self, model: nn.Module, clips: Sequence[Clip]) -> None:
        of = {
            "model": fingerprint(modules=_modules(model)),
            "weights": fingerprint(float_state_dict(model).items()),
            "clips": fingerprint(_shown(clips), clips=[length_hint(clip, 1) for clip in clips]),
        }
        if self._looked is None:  # nothing is kept of what was shown before
            self._of = of
        for what, found in of.items():
            if self._of[what] != found:
                msg = (
                    f"these statistics were collected {_OTHER[what]}, and ranges found from them would be those of "
                    "then. Every model and every set of clips has its own: calibrate(..., statistics=Statistics())."
                )
                raise CalibrationError(msg)


_OTHER = {
    "model": "of another model",
    "weights": "of this model with other weights",
    "clips": "on other clips",
}


def _modules(model: nn.Module) -> list[tuple[str, ...]]:
    """What weights do not tell of the modules: strides and the like, and the classes of activations."""
    layers = [module for module in model.modules() if isinstance(module, ResidualLayer)]
    inside = {part for layer in layers for part in layer.modules()} - set(layers)  # quantizers
    found = []
    for name, module in model.named_modules():
        if module not in inside:
            has_weights = isinstance(module, (ResidualLayer, _BatchNorm)) or any(
                True for _ in module.parameters(False)
            )
            constants = [f"{key}={getattr(module, key, None)}" for key in getattr(module, "__constants__", ())]
            found.append((name, "" if has_weights else type(module).__name__, *constants))
    return found


def _foldable(layers: Mapping[str, ResidualLayer], model: nn.Module) -> Hashable:
    """What it depends on which batch norms the first frames let fold."""
    config = next(iter(layers.values())).settings.config
    return config.backend, tuple(layers), tuple(sorted(folded_pairs(model).items()))


def _shown(clips: Sequence[Clip]) -> Iterator[tuple[str, Tensor]]:
    """The first and the last frame of some clips."""
    count = min(len(clips), LOOKED_AT)
    for index in sorted({place * len(clips) // count for place in range(count)}):
        clip = clips[index]
        for position in (0, -1) if isinstance(clip, (Tensor, Sequence)) and len(clip) else ():
            for leaf in tree_leaves(clip[position]):
                if isinstance(leaf, Tensor):
                    yield f"{index} {position} {tuple(leaf.shape)}", leaf


def _look(
    model: nn.Module, layers: Mapping[str, ResidualLayer], clips: Sequence[Clip], start: Start | None
) -> tuple[bool, Hashable]:
    """What the look at some clips depends on: whether at residuals, too, and all else."""
    config = next(iter(layers.values())).settings.config
    sample = config.calibration
    # Clips that are no longer than T are split by no T.
    longest = min(longest_interval(config), max((length_hint(clip, 1) for clip in clips), default=0))
    device = next((parameter.device for parameter in model.parameters()), None)
    return config.residual is not None, (
        *(_foldable(layers, model), device),
        *(longest, config.reference == "running", config.schedule.kind, start is not None),
        *(sample.samples, sample.positions, sample.recheck),
    )
