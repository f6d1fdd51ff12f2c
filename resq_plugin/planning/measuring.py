"""Every choice of every layer, measured once and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import nn

from resq_plugin.backends import TorchResidualLayer
from resq_plugin.config import PolicyConfig, Precision, ResQConfig
from resq_plugin.conversion import convert, fold_batch_norms, revert
from resq_plugin.method import residual_layers
from resq_plugin.planning.effects import Effect, LayerStudy, Scheme
from resq_plugin.planning.journal import SearchJournal
from resq_plugin.planning.observe import LayerView, observe
from resq_plugin.planning.options import Menu, measure_menu
from resq_plugin.planning.target import Target

__all__ = ["Measured", "measure"]

POSITIONS = 1024
"""Output positions per layer and frame number of an interval, over all intervals."""
SCORES = 3
"""Random scores per frame."""
FRAMES = 64
"""Frames that are looked at, at most."""


@dataclass(frozen=True)
class Measured:
    """What is known of all layers.

    Attributes:
        menus: by reference and layer, the effect of every choice that was run, per frame.
        weights: ``tensor`` or ``channel``.
        grid: ``symmetric`` or ``unsigned``.
        groups: layers that read the same tensor.
        unreached: layers that no frame reached.
        notes: why weights and grid are these.
    """

    menus: Mapping[str, Mapping[str, Menu]]
    weights: str
    grid: str
    groups: tuple[tuple[str, ...], ...]
    unreached: tuple[str, ...]
    notes: tuple[str, ...]


def measure(
    model: nn.Module,
    clips: Sequence[Sequence[Any]],
    run: Callable[[Any], Any] | None,
    target: Target,
    intervals: Sequence[int],
    criterion: str,
    seed: int,
    journal: SearchJournal,
    bar: Any,
    common: Mapping[str, Any],
) -> Measured:
    """Observe the float model and try every choice of every layer on what was seen.

    Args:
        model: float, in evaluation mode; it is given back as it was.
        clips: intervals of as many frames as the longest T.
        run: what runs one frame, when it is not ``model(frame)``.
        target: what layers may do.
        intervals: T that are possible on these clips.
        criterion: ``kl`` or ``squared``.
        seed: of what is drawn.
        journal: where effects are kept.
        bar: progress.
        common: further fields of `ResQConfig`.
    """
    keep = {key: common[key] for key in ("include", "exclude") if key in common}
    convert(model, ResQConfig.parse("W8A8->W8A{0,8}", **keep))
    try:
        fold_batch_norms(model, clips[0][0], run)
        layers = residual_layers(model)
        references = target.references if max(intervals) > 1 else target.references[:1]
        candidates = ResQConfig.parse("W8A8", **common).calibration.candidates
        finder = _Finder(model, layers, clips, run or model, target, criterion, seed, journal, bar, candidates)
        names = finder.names()
        bar.total = (bar.total or 0) + len(names) * len(references)
        weights, grid, notes = finder.pilot(references[0])
        menus: dict[str, dict[str, Menu]] = {}
        for reference in references:
            scheme = Scheme(reference, weights == "channel", grid == "unsigned")
            menus[reference] = {}
            for name in names:
                bar.set_description(f"{reference}: {name}")
                menus[reference][name] = finder.menu(
                    name, scheme, streams=max(intervals) > 1, frames=min(intervals) == 1
                )
                bar.update()
        unreached = tuple(name for name in layers if name not in names)
        return Measured(menus, weights, grid, finder.groups(), unreached, notes)
    finally:
        revert(model)


class _Finder:
    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Any],
        clips: Sequence[Sequence[Any]],
        run: Callable[[Any], Any],
        target: Target,
        criterion: str,
        seed: int,
        journal: SearchJournal,
        bar: Any,
        candidates: int,
    ) -> None:
        self.candidates = candidates
        self.model, self.layers, self.target, self.journal, self.bar = model, layers, target, journal, bar
        self.criterion, self.seed, self.run = criterion, seed, run
        count = max(1, FRAMES // max(map(len, clips)))
        spread = sorted({index * len(clips) // min(count, len(clips)) for index in range(min(count, len(clips)))})
        self.clips = [clips[index] for index in spread]
        self.policy = PolicyConfig(granularity=target.granularity, region=target.region)
        self._seen: dict[str, LayerView] = {}

    def seen(self) -> dict[str, LayerView]:
        """What was observed; the same for the same seed, so it needs no place on disk."""
        if not self._seen:
            self.bar.set_description("observing")
            self.bar.total = (self.bar.total or 0) + sum(map(len, self.clips))
            self._seen = observe(
                self.model,
                self.layers,
                self.clips,
                run=self.run,
                criterion=self.criterion,
                scores=SCORES,
                positions=POSITIONS,
                seed=self.seed,
                step=self.bar.update,
            )
        return self._seen

    def names(self) -> list[str]:
        """Layers that were reached, in the order of their calls."""
        sources = self.journal.records.get("sources")
        if sources is None:
            found = {name: view.source for name, view in self.seen().items()}
            sources = self.journal.add("sources", found)
        return list(sources)

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Layers that read the same tensor."""
        if not self.target.shared_inputs:
            return ()
        sources = self.journal.records["sources"]
        alike = [tuple(n for n in sources if sources[n] == source) for source in dict.fromkeys(sources.values())]
        return tuple(group for group in alike if len(group) > 1)

    def study(self, name: str, scheme: Scheme) -> LayerStudy:
        layer = self.layers[name]
        if not isinstance(layer, TorchResidualLayer):
            msg = f"layer {name} is a {type(layer).__name__}"
            raise TypeError(msg)
        return LayerStudy(layer, self.seen()[name], scheme, self.policy, self.candidates)

    def pilot(self, reference: str) -> tuple[str, str, tuple[str, ...]]:
        """Scales of weights and the grid of keyframes: those with the smaller error at few bits."""
        pairs = list(product(self.target.weights, self.target.grids))
        if len(pairs) == 1:
            return *pairs[0], ()
        bits = [sorted(self.target.weight_bits)[0], sorted(self.target.activation_bits)[0]]
        precision = Precision(*(max(width, 4) for width in bits))
        errors = self.journal.records.get("pilot")
        if errors is None:
            self.bar.set_description("weights and grid")
            errors = self.journal.add(
                "pilot",
                {
                    f"{weights}, {grid}": sum(
                        sum(
                            self.study(name, Scheme(reference, weights == "channel", grid == "unsigned"))
                            .frame_effect(precision)
                            .error
                        )
                        for name in self.names()
                    )
                    for weights, grid in pairs
                },
            )
        best = min(pairs, key=lambda pair: errors[", ".join(pair)])
        listed = "; ".join(f"{key} {value / errors[', '.join(best)]:.2f}" for key, value in errors.items())
        return *best, (
            f"weights={best[0]!r} and keyframe_grid={best[1]!r}: error at {precision} relative to it: {listed}",
        )

    def menu(self, name: str, scheme: Scheme, *, streams: bool, frames: bool) -> Menu:
        key = f"layer {scheme.reference} {name}"
        if key not in self.journal.records:
            found = measure_menu(self.study(name, scheme), self.target, streams=streams, frames=frames)
            scale = sum(1 for _ in self.clips)
            self.journal.add(
                key,
                {
                    choice: [[value / scale for value in effect.error], list(effect.bits)]
                    for choice, effect in found.items()
                },
            )
        return {
            choice: Effect(tuple(error), tuple(bits)) for choice, (error, bits) in self.journal.records[key].items()
        }
