"""What one layer may do: each choice with the change of the output it makes, its bit operations and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resq_plugin.config import Precision, StateConfig
from resq_plugin.cost import Kept, LayerCall, state_bytes_of
from resq_plugin.planning.effects import Effect, LayerStudy
from resq_plugin.planning.target import Choice, Target

__all__ = ["Menu", "Option", "Work", "measure_menu", "menu_at", "works_of"]


@dataclass(frozen=True)
class Work:
    """What a layer has to do in a frame, over all its calls.

    Attributes:
        macs: multiply-accumulates.
        inputs: elements it reads.
        outputs: elements it writes.
        kept: bytes of references and outputs by what residuals are to, with one or two bytes of quantized ones.
    """

    macs: int
    inputs: int
    outputs: int
    kept: Mapping[str, int] = field(default_factory=dict)

    def bops(self, choice: Choice, bits: Sequence[float]) -> float:
        """Bit operations per frame of an interval with those mean activation bits at t = 0, 1, ..., T - 1.

        >>> Work(macs=10, inputs=3, outputs=5).bops(Choice.parse("W8A8->W4A4"), (8.0, 4.0))  # (640 + 160) / 2
        400.0
        """
        first = self.macs * choice.keyframe.weight * choice.keyframe.pool[-1]
        residual = choice.residual
        if residual is None:
            return float(first)
        policy = 0
        if len(residual.pool) > 1:
            policy = self.inputs * len(residual.pool) * residual.pool[-1] ** 2
        rest = sum(self.macs * residual.weight * mean + policy for mean in bits[1:])
        return (first + rest) / len(bits)

    def state(self, choice: Choice, reference: str) -> int:
        """Bytes kept between frames."""
        if choice.residual is None:
            return 0
        two = reference == "quantized" and choice.keyframe.pool[-1] > 8
        return self.kept.get(f"{reference} 16" if two else reference, 0)


def works_of(calls: Sequence[LayerCall], state: StateConfig | None = None) -> dict[str, Work]:
    """What each layer has to do, by name.

    Args:
        calls: in the order in which the network makes them.
        state: how things are kept.
    """
    state = state or StateConfig()
    byte, word = Precision(8, 8), Precision(8, 16)
    ways = {reference: Kept(byte, byte, reference, state) for reference in ("float", "quantized", "running")}
    ways["quantized 16"] = Kept(word, byte, "quantized", state)
    sizes = {way: state_bytes_of(calls, lambda _, kept=kept: kept) for way, kept in ways.items()}  # type: ignore[misc]
    found: dict[str, Work] = {}
    for call in calls:
        old, kept = found.get(call.name, Work(0, 0, 0)), {way: by_name[call.name] for way, by_name in sizes.items()}
        found[call.name] = Work(old.macs + call.macs, old.inputs + call.inputs, old.outputs + call.outputs, kept)
    return found


Menu = Mapping[str, Effect]
"""Effects that were measured of one layer, by the text of the choice."""


@dataclass(frozen=True)
class Option:
    """A choice and what it comes to at some T.

    Attributes:
        choice: of the layer.
        error: change of the output per frame, mean over the interval.
        bops: per frame.
        state: bytes.
    """

    choice: Choice
    error: float
    bops: float
    state: int


def measure_menu(study: LayerStudy, target: Target, *, streams: bool, frames: bool) -> dict[str, Effect]:
    """Measure a layer: residual precisions behind the finest keyframe, keyframes before the finest residual.

    Args:
        study: of the layer.
        target: what it may do.
        streams: whether any T above 1 is wanted.
        frames: whether T = 1 is wanted.
    """
    keyframes = target.keyframe_choices()
    found: dict[str, Effect] = {}
    if frames or target.stateless:
        found |= {str(Choice(precision)): study.frame_effect(precision) for precision in keyframes}
    if not streams:
        return found
    pools: dict[tuple[tuple[int, ...], float | None], list[int]] = {}
    for precision, threshold in (*target.residual_choices(), (_finest(target), None)):
        pools.setdefault((precision.pool, threshold), []).append(precision.weight)
    for (pool, threshold), weights in pools.items():
        activation = Precision(weights[0], pool if len(pool) > 1 else pool[0])
        for bits, effect in study.effects(keyframes[-1], activation, threshold, set(weights)).items():
            residual = Precision(bits, activation.activation)
            found[str(Choice(keyframes[-1], residual, threshold))] = effect
    finest = _finest(target)
    for keyframe in keyframes[:-1]:
        effect = study.effects(keyframe, finest, None, [finest.weight])[finest.weight]
        found[str(Choice(keyframe, finest))] = effect
    return found


def _finest(target: Target) -> Precision:
    """The residual precision that hides least of a keyframe's own error."""
    static = [precision for precision, _ in target.residual_choices() if not precision.is_dynamic]
    tops = [Precision(p.weight, p.pool[-1]) for p, _ in target.residual_choices()]
    return max(static or tops, key=lambda p: p.weight * p.pool[-1])


def menu_at(menu: Menu, work: Work, target: Target, interval: int, reference: str) -> list[Option]:
    """Every choice of a layer at some T.

    The error of a pair is that of its residual behind the finest keyframe, and what its keyframe adds to that before
    the finest residual.
    """
    keyframes = target.keyframe_choices()
    if interval == 1:
        choices = [Choice(precision) for precision in keyframes]
        return [Option(choice, _mean(menu[str(choice)].error), work.bops(choice, ()), 0) for choice in choices]
    options = []
    finest, best = _finest(target), keyframes[-1]
    plain = _mean(menu[str(Choice(best, finest))].error[:interval])
    for keyframe in keyframes:
        more = max(_mean(menu[str(Choice(keyframe, finest))].error[:interval]) - plain, 0.0)
        for residual, threshold in target.residual_choices():
            effect = menu[str(Choice(best, residual, threshold))]
            choice = Choice(keyframe, residual, threshold)
            bops = work.bops(choice, effect.bits[:interval])
            error = _mean(effect.error[:interval]) + more
            options.append(Option(choice, error, bops, work.state(choice, reference)))
        if target.stateless:
            choice = Choice(keyframe)
            options.append(Option(choice, _mean(menu[str(choice)].error[:interval]), work.bops(choice, ()), 0))
    return options


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
