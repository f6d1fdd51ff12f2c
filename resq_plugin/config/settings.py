"""Every setting of the method as one frozen value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from resq_plugin.config.checks import at_least, check_patterns, choice
from resq_plugin.config.precision import MIN_BITS, Precision, parse_precision
from resq_plugin.config.sections import CalibrationConfig, PolicyConfig, ScheduleConfig, StateConfig
from resq_plugin.errors import ConfigError, nearest

__all__ = ["ResQConfig"]

CONFIG_VERSION = 1
KEYFRAME, RESIDUAL = Precision(8, 8), Precision(4, 4)


@dataclass(frozen=True)
class ResQConfig:
    """Every setting of ResQ. Make one with `parse` or `from_dict`.

    Attributes:
        keyframe: precision of keyframes, Φ of Eq. 5.
        residual: precision of residual frames, Θ of Eq. 5; None quantizes every frame on its own.
        interval: T, frames per interval: one keyframe and T - 1 residual frames.
        weights: one scale per ``tensor`` (paper default) or per output ``channel``.
        reference: what residuals are differences to: ``float`` (x_k, paper), ``quantized`` (q(x_k)) or
            ``running`` (the last reconstruction, updated every frame).
        keyframe_grid: ``symmetric`` (paper) or ``unsigned`` where the inputs of a layer are never negative.
        policy: choice of the bit width for a dynamic pool.
        calibration: search of the activation ranges.
        schedule: when to start a new interval.
        state: what layers keep between frames.
        include: patterns (fnmatch) of qualified layer names to convert.
        exclude: patterns of layers that stay in float.
        overrides: pattern to notation, e.g. ``{"head.*": "W8A8->W8A8"}``; the last match wins.
        on_change: what a stream does when batch, resolution, dtype or device change, or a frame is not finite:
            ``raise``, or ``keyframe`` to start a new interval.
        compile: run the elementwise part through `torch.compile` (needs a C++ compiler).
        backend: who holds the quantizers, a name of the entry-point group ``resq_plugin.backends``.
    """

    keyframe: Precision = KEYFRAME
    residual: Precision | None = RESIDUAL
    interval: int = 3
    weights: str = "tensor"
    reference: str = "float"
    keyframe_grid: str = "symmetric"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    state: StateConfig = field(default_factory=StateConfig)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()
    on_change: str = "raise"
    compile: bool = False
    backend: str = "torch"

    def __post_init__(self) -> None:
        at_least("interval", self.interval, 1)
        choice("weights", self.weights, ("tensor", "channel"))
        choice("reference", self.reference, ("float", "quantized", "running"))
        choice("keyframe_grid", self.keyframe_grid, ("symmetric", "unsigned"))
        choice("on_change", self.on_change, ("raise", "keyframe"))
        for key, value, kinds in (
            ("keyframe", self.keyframe, Precision),
            ("residual", self.residual, (Precision, type(None))),
        ):
            if not isinstance(value, kinds):
                msg = f"{key}={value!r} must be a Precision; write the paper's notation, e.g. precision='W8A8->W4A4'."
                raise ConfigError(msg)
        if self.keyframe.is_dynamic or self.keyframe.activation == 0:
            msg = f"keyframe={self.keyframe} needs one activation bit width of at least {MIN_BITS}, e.g. W8A8."
            raise ConfigError(msg)
        for key in ("include", "exclude"):
            check_patterns(self, key, key)
        object.__setattr__(self, "overrides", _pairs(self.overrides))
        for _, text in self.overrides:
            parse_precision(text)

    @classmethod
    def parse(cls, precision: str, **settings: Any) -> ResQConfig:
        """Make a configuration from the paper's notation and any other field.

        >>> ResQConfig.parse("W8A8→W4A4", interval=5).notation
        'W8A8->W4A4'

        Raises:
            ConfigError: unknown setting (the nearest allowed one is named), or an impossible value.
        """
        return cls.from_dict({"precision": precision, **settings})

    @property
    def notation(self) -> str:
        """The paper's notation, e.g. ``W8A8->W4A{0,4,8}``."""
        return str(self.keyframe) if self.residual is None else f"{self.keyframe}->{self.residual}"

    def __str__(self) -> str:
        return self.notation if self.residual is None else f"{self.notation} (T={self.interval})"

    def selects(self, name: str) -> bool:
        """Whether the layer of that qualified name is to be converted."""
        return any(fnmatchcase(name, pattern) for pattern in self.include) and not any(
            fnmatchcase(name, pattern) for pattern in self.exclude
        )

    def precision_of(self, name: str) -> tuple[Precision, Precision | None]:
        """Keyframe and residual precision of the layer of that qualified name; no residual of a stateless one."""
        precisions = self.keyframe, self.residual
        for pattern, text in self.overrides:
            if fnmatchcase(name, pattern):
                keyframe, residual = parse_precision(text)
                # A network without residual frames has no use for a residual precision.
                precisions = keyframe, None if self.residual is None else residual or keyframe
        return (precisions[0], None) if self.state.is_stateless(name) else precisions

    def replace(self, **changes: Any) -> ResQConfig:
        """Return a copy with some settings changed, written as in `parse` (``precision`` included)."""
        values = self.to_dict()
        if not {"keyframe", "residual"}.isdisjoint(changes):
            del values["precision"]
            values |= {"keyframe": self.keyframe, "residual": self.residual}
        return type(self).from_dict({**values, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return plain, versioned, JSON-ready values that `from_dict` reads back."""
        values = dataclasses.asdict(self)
        del values["keyframe"], values["residual"]
        lists = {key: list(values[key]) for key in ("include", "exclude")}
        overrides = dict(self.overrides)
        values["policy"]["thresholds"] = dict(self.policy.thresholds)
        values["state"]["stateless"] = list(self.state.stateless)
        return {"version": CONFIG_VERSION, "precision": self.notation, **values, **lists, "overrides": overrides}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResQConfig:
        """Read what `to_dict` wrote, or a hand-written ``dict(precision='W8A8->W4A4', interval=3, ...)``.

        Raises:
            ConfigError: unknown key (the nearest allowed one is named), wrong version, or an impossible value.
        """
        values = dict(values)
        version = values.pop("version", CONFIG_VERSION)
        if version != CONFIG_VERSION:
            msg = f"version={version!r} of the configuration is unknown; this release reads version {CONFIG_VERSION}."
            raise ConfigError(msg)
        if "precision" in values:
            twice = sorted({"keyframe", "residual"} & values.keys())
            if twice:
                msg = f"precision={values['precision']!r} says {twice[0]} already; write one of the two."
                raise ConfigError(msg)
            values["keyframe"], values["residual"] = parse_precision(values.pop("precision"))
        names = {item.name for item in dataclasses.fields(cls)}
        _check_keys("", values, (names - {"keyframe", "residual"}) | {"precision"}, names)
        for key, section in _SECTIONS.items():
            if key in values:
                values[key] = _section(key, section, values[key])
        return cls(**values)


def _pairs(overrides: object) -> tuple[tuple[str, str], ...]:
    """Patterns and notations in order; of a repeated pattern the last one."""
    items = list(overrides.items()) if isinstance(overrides, Mapping) else overrides
    pairs: dict[str, str] = {}
    for item in items if isinstance(items, (list, tuple)) else [items]:
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(part, str) for part in item)):
            msg = (
                f"overrides={overrides!r} must be patterns with a notation, e.g. overrides={{'head.*': 'W8A8->W8A8'}}."
            )
            raise ConfigError(msg)
        pattern, text = item
        pairs.pop(pattern, None)
        pairs[pattern] = text
    return tuple(pairs.items())


_SECTIONS: dict[str, Any] = {
    "policy": PolicyConfig,
    "calibration": CalibrationConfig,
    "schedule": ScheduleConfig,
    "state": StateConfig,
}


def _section(key: str, section: Any, value: object) -> Any:
    if isinstance(value, section):
        return value
    names = {item.name for item in dataclasses.fields(section)}
    if not isinstance(value, Mapping):
        msg = f"{key}={value!r} must be a dict with some of {', '.join(sorted(names))}."
        raise ConfigError(msg)
    _check_keys(f"{key}.", value, names, names)
    return section(**value)


def _check_keys(prefix: str, values: Mapping[str, Any], shown: set[str], allowed: set[str]) -> None:
    for key, value in values.items():
        if key not in allowed:
            hint = nearest(key, shown) if prefix else _home(key, value) or nearest(key, shown)
            msg = f"unknown setting {prefix}{key}.{hint} Allowed are {', '.join(sorted(shown))}."
            raise ConfigError(msg)


_OTHER_NAMES = {
    "T": "interval",
    "tau": "threshold",
    "τ": "threshold",
    "thresholds": "threshold",
    "intervals": "interval",
}


def _home(key: str, value: object) -> str:
    """Where a setting of a section is to be written, or one that is known under another name."""
    name = _OTHER_NAMES.get(key, key)
    for section, kind in _SECTIONS.items():
        if name in {item.name for item in dataclasses.fields(kind)}:
            return f" Write {section}={{{name!r}: {value!r}}}."
    return f" Write {name}={value!r}." if name != key else ""
