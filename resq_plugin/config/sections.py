"""Settings that belong together: policy, calibration, schedule, state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from resq_plugin.config.checks import at_least, check_patterns, check_threshold, choice
from resq_plugin.errors import ConfigError

__all__ = ["CalibrationConfig", "PolicyConfig", "ScheduleConfig", "StateConfig"]


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
        choice("policy.normalize", self.normalize, ("layer", "none"))
        choice("policy.granularity", self.granularity, ("pixel", "region", "frame"))
        at_least("policy.region", self.region, 1)
        check_threshold("policy.threshold", self.threshold)
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
        choice("calibration.fit", self.fit, ("none", "bias", "weights"))
        at_least("calibration.samples", self.samples, 1)
        at_least("calibration.candidates", self.candidates, 2)
        at_least("calibration.positions", self.positions, 1)
        at_least("calibration.recheck", self.recheck, 0)


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
        choice("schedule.kind", self.kind, ("interval", "scene_change", "spread"))
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
        check_patterns(self, "stateless", "state.stateless")

    def is_stateless(self, name: str) -> bool:
        """Whether the layer of that qualified name keeps nothing.

        >>> StateConfig(stateless=("head.*",)).is_stateless("head.0")
        True
        """
        return any(fnmatchcase(name, pattern) for pattern in self.stateless)


def _thresholds(thresholds: object) -> tuple[tuple[str, float], ...]:
    """Patterns and τ in order; of a repeated pattern the last one."""
    items = list(thresholds.items()) if isinstance(thresholds, Mapping) else thresholds
    found: dict[str, float] = {}
    for item in items if isinstance(items, (list, tuple)) else [items]:
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str)):
            msg = f"policy.thresholds={thresholds!r} must be patterns with a τ, e.g. {{'head.*': 0.05}}."
            raise ConfigError(msg)
        pattern, threshold = item
        check_threshold(f"policy.thresholds[{pattern!r}]", threshold)
        found.pop(pattern, None)
        found[pattern] = threshold
    return tuple(found.items())
