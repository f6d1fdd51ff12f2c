"""What the hardware has, and what of it one layer may use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from resq_plugin.config import PolicyConfig, Precision, parse_precision
from resq_plugin.errors import ConfigError, nearest

__all__ = ["Choice", "Target"]

BITS = (3, 4, 6, 8)


@dataclass(frozen=True)
class Choice:
    """How one layer may run.

    Attributes:
        keyframe: precision of Φ.
        residual: precision of Θ; None where every frame is quantized on its own.
        threshold: τ of a dynamic pool; None without one.
    """

    keyframe: Precision
    residual: Precision | None = None
    threshold: float | None = None

    @property
    def notation(self) -> str:
        """The paper's notation."""
        return str(self.keyframe) if self.residual is None else f"{self.keyframe}->{self.residual}"

    def __str__(self) -> str:
        return self.notation if self.threshold is None else f"{self.notation} τ={self.threshold:g}"

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read what `str` wrote.

        >>> str(Choice.parse("W8A8->W4A{0,4} τ=0.1"))
        'W8A8->W4A{0,4} τ=0.1'
        """
        notation, _, threshold = text.partition(" τ=")
        return cls(*parse_precision(notation), float(threshold) if threshold else None)


@dataclass(frozen=True)
class Target:
    """What the hardware has; every layer gets something of it.

    Attributes:
        weight_bits: bit widths of weights.
        activation_bits: bit widths of activations, apart from 0.
        keyframes: precisions of keyframes, such as ``("W8A8", "W6A6")``; unless given, every pair of the bit widths
            in which weights have no more bits than activations.
        residuals: precisions of residual frames, such as ``("W4A8", "W4A{0,4}")``; unless given, every bit width of
            activations, with and without 0 bits beside it, and weights of at most one step more or fewer.
        pools: whether the bit width may be chosen per pixel while running; without it residuals have one bit width.
        thresholds: τ that a pool may have.
        granularity: what shares one choice, as in `PolicyConfig`.
        region: side of a region in pixels.
        intervals: T.
        references: what residuals may be differences to.
        weights: scales per ``tensor``, per output ``channel``, or whichever is better.
        grids: of keyframes: ``symmetric``, ``unsigned``, or whichever is better.
        shared_inputs: layers that read the same tensor get the same precision and τ.
        stateless: whether a layer may keep nothing between frames, and quantize each frame on its own.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """

    weight_bits: tuple[int, ...] = BITS
    activation_bits: tuple[int, ...] = BITS
    keyframes: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()
    pools: bool = True
    thresholds: tuple[float, ...] = (0.03, 0.1, 0.2, 0.4)
    granularity: str = "pixel"
    region: int = 8
    intervals: tuple[int, ...] = (4, 8, 16)
    references: tuple[str, ...] = ("float", "quantized", "running")
    weights: tuple[str, ...] = ("tensor", "channel")
    grids: tuple[str, ...] = ("symmetric", "unsigned")
    shared_inputs: bool = False
    stateless: bool = False

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, tuple):
                if not isinstance(value, (list, tuple)) or (not value and item.default):
                    example = repr(item.default or ("W8A8", "W6A6"))
                    msg = f"target.{item.name}={value!r} must be a list of at least one, e.g. {example}."
                    raise ConfigError(msg)
                object.__setattr__(self, item.name, tuple(dict.fromkeys(value)))
            elif isinstance(item.default, bool) and not isinstance(value, bool):
                msg = f"target.{item.name}={value!r} is not allowed; write True or False."
                raise ConfigError(msg)
        PolicyConfig(granularity=self.granularity, region=self.region)
        for threshold in self.thresholds:
            PolicyConfig(threshold=threshold)
        for key, allowed in (
            ("references", ("float", "quantized", "running")),
            ("weights", ("tensor", "channel")),
            ("grids", ("symmetric", "unsigned")),
        ):
            for value in getattr(self, key):
                if value not in allowed:
                    msg = f"target.{key} names {value!r}; allowed are {', '.join(map(repr, allowed))}."
                    raise ConfigError(msg + nearest(str(value), allowed))
        for interval in self.intervals:
            if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
                msg = (
                    f"target.intervals names {interval!r}; T is a whole number of at least 1, which has no residuals."
                )
                raise ConfigError(msg)
        self.keyframe_choices()
        self.residual_choices()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Target:
        """Read plain values.

        Raises:
            ConfigError: unknown key (the nearest allowed one is named), or an impossible value.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                msg = f"unknown setting target.{key}.{nearest(key, names)} Allowed are {', '.join(names)}."
                raise ConfigError(msg)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values that `from_dict` reads back."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    def keyframe_choices(self) -> tuple[Precision, ...]:
        """Precisions of keyframes, the finest last.

        >>> [str(precision) for precision in Target(weight_bits=(4, 8), activation_bits=(8, 16)).keyframe_choices()]
        ['W4A8', 'W4A16', 'W8A8', 'W8A16']
        """
        if self.keyframes:
            found = [parse_precision(text)[0] for text in self.keyframes]
        else:
            pairs = product(sorted(self.weight_bits), sorted(self.activation_bits))
            found = [Precision(w, a) for w, a in pairs if w <= a]
        if not found:
            msg = f"target.weight_bits={self.weight_bits} all exceed activation_bits={self.activation_bits}."
            raise ConfigError(msg)
        return tuple(sorted(found, key=lambda p: p.weight * p.pool[-1]))

    def residual_choices(self) -> tuple[tuple[Precision, float | None], ...]:
        """Precisions of residual frames with their τ.

        >>> narrow = Target(weight_bits=(4,), activation_bits=(8,), thresholds=(0.1,))
        >>> [f"{precision} {threshold}" for precision, threshold in narrow.residual_choices()]
        ['W4A8 None', 'W4A{0,8} 0.1']
        """
        if self.residuals:
            precisions = [parse_precision(f"W8A8->{text}")[1] for text in self.residuals]
        else:
            bits = sorted(self.activation_bits)
            steps = sorted({*self.weight_bits, *bits})
            precisions = [
                Precision(w, pool)
                for a in bits
                for w in sorted(self.weight_bits)
                if abs(steps.index(w) - steps.index(a)) <= 1 or w == max(self.weight_bits) < a
                for pool in ((a, (0, a)) if self.pools else (a,))
            ]
        found: list[tuple[Precision, float | None]] = []
        for precision in precisions:
            if precision is None:
                continue
            if precision.is_dynamic and not self.pools:
                msg = f"target.residuals names the pool {precision}, but pools=False."
                raise ConfigError(msg)
            found += [(precision, tau) for tau in (self.thresholds if len(precision.pool) > 1 else (None,))]
        return tuple(dict.fromkeys(found))
