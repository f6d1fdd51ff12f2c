"""Configuration as frozen values: the paper's precision notation and every setting of the method."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from resq_plugin.errors import ConfigError, nearest

__all__ = [
    "MAX_BITS",
    "CalibrationConfig",
    "PolicyConfig",
    "Precision",
    "ResQConfig",
    "ScheduleConfig",
    "StateConfig",
    "parse_precision",
]

CONFIG_VERSION = 1
MIN_BITS, MAX_BITS = 2, 16

_SIDE = re.compile(r"W(\d+)A(?:(\d+)|[{\[]\s*(\d+(?:\s*,\s*\d+)*)\s*[}\]])", re.IGNORECASE)
_ARROW = re.compile(r"\s*(?:->|→)\s*")


def _choice(key: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        hint = nearest(str(value), allowed)
        msg = f"{key}={value!r} is not allowed; write one of {', '.join(map(repr, allowed))}.{hint}"
        raise ConfigError(msg)


def _at_least(key: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        msg = f"{key}={value!r} is not allowed; write a whole number of at least {low}."
        raise ConfigError(msg)


def _check_threshold(key: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        msg = f"{key}={value!r} is not allowed; write a number of at least 0, e.g. 0.1."
        raise ConfigError(msg)


def _check_bits(what: str, bits: object, *, zero: bool) -> None:
    allowed = f"{'0 or ' if zero else ''}{MIN_BITS} to {MAX_BITS}"
    ok = isinstance(bits, int) and not isinstance(bits, bool)
    if not ok or not ((zero and bits == 0) or MIN_BITS <= bits <= MAX_BITS):  # type: ignore[operator]
        msg = f"{what} has {bits!r} bits; allowed are {allowed}, e.g. 'W8A8->W4A4' or 'W8A8->W4A{{0,4,8}}'."
        raise ConfigError(msg)


@dataclass(frozen=True)
class Precision:
    """Bit widths of one kind of frame, e.g. ``W4A8`` or the dynamic pool ``W4A{0,4,8}`` (§4.2).

    Attributes:
        weight: bits of the weights, 2 to 16.
        activation: bits of the activations, 0 or 2 to 16; a tuple, low to high, is a pool to choose from per pixel.
    """

    weight: int
    activation: int | tuple[int, ...]

    def __post_init__(self) -> None:
        _check_bits("the weight", self.weight, zero=False)
        activation: object = self.activation
        if isinstance(activation, list):  # from JSON
            object.__setattr__(self, "activation", tuple(activation))
        for bits in self.pool:
            _check_bits("the activation", bits, zero=True)
        if not self.pool or list(self.pool) != sorted(set(self.pool)):
            msg = (
                f"the pool {self.activation} must name different bit widths from low to high (§4.2), "
                f"e.g. 'W{self.weight}A{{0,4,8}}'."
            )
            raise ConfigError(msg)

    @property
    def pool(self) -> tuple[int, ...]:
        """The activation bit widths, low to high; a single one unless dynamic."""
        return self.activation if isinstance(self.activation, tuple) else (self.activation,)

    @property
    def is_dynamic(self) -> bool:
        """Whether the activation bit width is chosen while running."""
        return isinstance(self.activation, tuple)

    def __str__(self) -> str:
        activation = f"{{{','.join(map(str, self.pool))}}}" if self.is_dynamic else str(self.activation)
        return f"W{self.weight}A{activation}"


def parse_precision(text: str) -> tuple[Precision, Precision | None]:
    """Read the paper's notation: keyframe and residual precision.

    A single side, such as ``"W8A8"``, is plain frame quantization and has no residual precision.

    >>> keyframe, residual = parse_precision("W8A8->W4A{0,4,8}")
    >>> str(keyframe), str(residual), residual.pool
    ('W8A8', 'W4A{0,4,8}', (0, 4, 8))

    Raises:
        ConfigError: the text is not of that form, or a bit width is impossible.
    """
    sides = _ARROW.split(text.strip()) if isinstance(text, str) else []
    matches = [_SIDE.fullmatch(side) for side in sides]
    if not 1 <= len(matches) <= 2 or any(match is None for match in matches):
        msg = (
            f"cannot read the precision {text!r}; write keyframe->residual such as "
            "'W8A8->W4A4', with a pool 'W8A8->W4A{0,4,8}', or 'W8A8' for plain frame quantization."
        )
        raise ConfigError(msg)
    parsed = []
    for match in matches:
        weight, single, pool = match.groups()  # type: ignore[union-attr]
        activation = int(single) if single is not None else tuple(int(bits) for bits in pool.split(","))
        parsed.append(Precision(int(weight), activation))
    keyframe, residual = parsed[0], parsed[1] if len(parsed) == 2 else None
    if keyframe.is_dynamic or keyframe.activation == 0:
        msg = (
            f"the keyframe {keyframe} in {text!r} needs one bit width of at least {MIN_BITS}, "
            "e.g. 'W8A8->W4A{0,4,8}'."
        )
        raise ConfigError(msg)
    return keyframe, residual


@dataclass(frozen=True)
class PolicyConfig:
    """How Dynamic-ResQ chooses a quantizer of its pool (§4.2, Eq. 9-11).

    Attributes:
        threshold: τ of Eq. 11.
        normalize: ``layer`` divides the error by the layer's RMS keyframe activation norm, which makes τ scale-free;
            ``none`` is the literal Eq. 10 (the paper's τ = 0.0003 is of that scale).
        granularity: what shares one choice: ``pixel`` (paper), ``region`` (k×k pixels) or ``frame``.
        region: side k of a region in pixels.
        thresholds: pattern (fnmatch) of layer names to a τ of their own, e.g. ``{"head.*": 0.05}``; the last match
            wins.
    """

    threshold: float = 0.1
    normalize: str = "layer"
    granularity: str = "pixel"
    region: int = 8
    thresholds: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        _choice("policy.normalize", self.normalize, ("layer", "none"))
        _choice("policy.granularity", self.granularity, ("pixel", "region", "frame"))
        _at_least("policy.region", self.region, 1)
        _check_threshold("policy.threshold", self.threshold)
        object.__setattr__(self, "thresholds", _thresholds(self.thresholds))

    def threshold_of(self, name: str) -> float:
        """τ of the layer of that qualified name.

        >>> policy = PolicyConfig(threshold=0.1, thresholds={"head.*": 0.05})
        >>> policy.threshold_of("stem"), policy.threshold_of("head.0")
        (0.1, 0.05)
        """
        own = [threshold for pattern, threshold in self.thresholds if fnmatchcase(name, pattern)]
        return own[-1] if own else self.threshold


@dataclass(frozen=True)
class CalibrationConfig:
    """How activation ranges are found (§4.1, Eq. 8).

    Attributes:
        samples: c, the number of frames (keyframes and residual frames each) that are looked at.
        candidates: r, the points of the line search.
        positions: output positions sampled per layer and frame kind for the search.
        recheck: frames on which the best three candidates are compared on full maps; 0 trusts the sample.
        fit: what is fitted to the float outputs, layer by layer in the network as it runs quantized: ``none`` (paper),
            the ``bias`` of keyframes, or the rounding of ``weights`` and that bias. Fitted on the frames of
            ``recheck``, with ``backend="torch"``; the fewer bits, the more it gives.
    """

    samples: int = 64
    candidates: int = 20
    positions: int = 4096
    recheck: int = 4
    fit: str = "none"

    def __post_init__(self) -> None:
        _choice("calibration.fit", self.fit, ("none", "bias", "weights"))
        _at_least("calibration.samples", self.samples, 1)
        _at_least("calibration.candidates", self.candidates, 2)
        _at_least("calibration.positions", self.positions, 1)
        _at_least("calibration.recheck", self.recheck, 0)


@dataclass(frozen=True)
class ScheduleConfig:
    """When a frame is a keyframe, beside every `ResQConfig.interval` frames.

    Attributes:
        kind: ``interval`` (paper: fixed T), ``scene_change`` (also where the frame differs too much from the
            keyframe) or ``spread`` (one keyframe, then layers are refreshed in turn, each every T frames).
        threshold: relative change of the frame that starts a new interval; None takes what calibration found.
    """

    kind: str = "interval"
    threshold: float | None = None

    def __post_init__(self) -> None:
        _choice("schedule.kind", self.kind, ("interval", "scene_change", "spread"))
        is_number = isinstance(self.threshold, (int, float))
        if self.threshold is not None and not (is_number and 0 < self.threshold < float("inf")):
            msg = (
                f"schedule.threshold={self.threshold!r} is not allowed; write a number above 0, "
                "or None to calibrate it."
            )
            raise ConfigError(msg)


@dataclass(frozen=True)
class StateConfig:
    """What layers keep between frames.

    Attributes:
        reference_bits: 8 or 16 bits for what residuals are differences to, on a grid per video and channel from its
            smallest to its largest value, which is found at the keyframe; None keeps floats. With
            ``reference='quantized'`` the keyframe's own integers are kept where they have no more bits, without loss.
        output_bits: the same for z_k.
        stateless: patterns (fnmatch) of layers that keep nothing: each of their frames is quantized alone, with Φ.
    """

    reference_bits: int | None = None
    output_bits: int | None = None
    stateless: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("reference_bits", "output_bits"):
            value = getattr(self, key)
            if value is not None and (value not in (8, 16) or isinstance(value, (bool, float))):
                msg = f"state.{key}={value!r} is not allowed; write 8 or 16, or None for floats."
                raise ConfigError(msg)
        _check_patterns(self, "stateless", "state.stateless")

    def is_stateless(self, name: str) -> bool:
        """Whether the layer of that qualified name keeps nothing.

        >>> StateConfig(stateless=("head.*",)).is_stateless("head.0")
        True
        """
        return any(fnmatchcase(name, pattern) for pattern in self.stateless)


def _check_patterns(config: object, key: str, shown: str) -> None:
    patterns = getattr(config, key)
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(pattern, str) for pattern in patterns):
        own = shown.rsplit(".", 1)[-1]
        msg = f"{shown}={patterns!r} must be a list of patterns, e.g. {own}=('auxiliary_head.*',)."
        raise ConfigError(msg)
    object.__setattr__(config, key, tuple(patterns))


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

    keyframe: Precision = Precision(8, 8)
    residual: Precision | None = Precision(4, 4)
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
        _at_least("interval", self.interval, 1)
        _choice("weights", self.weights, ("tensor", "channel"))
        _choice("reference", self.reference, ("float", "quantized", "running"))
        _choice("keyframe_grid", self.keyframe_grid, ("symmetric", "unsigned"))
        _choice("on_change", self.on_change, ("raise", "keyframe"))
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
            _check_patterns(self, key, key)
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


def _thresholds(thresholds: object) -> tuple[tuple[str, float], ...]:
    """Patterns and τ in order; of a repeated pattern the last one."""
    items = list(thresholds.items()) if isinstance(thresholds, Mapping) else thresholds
    found: dict[str, float] = {}
    for item in items if isinstance(items, (list, tuple)) else [items]:
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str)):
            msg = f"policy.thresholds={thresholds!r} must be patterns with a τ, e.g. {{'head.*': 0.05}}."
            raise ConfigError(msg)
        pattern, threshold = item
        _check_threshold(f"policy.thresholds[{pattern!r}]", threshold)
        found.pop(pattern, None)
        found[pattern] = threshold
    return tuple(found.items())


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
