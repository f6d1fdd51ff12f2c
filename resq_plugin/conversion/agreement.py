"""Whether ranges that were found with one configuration may be used with another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from resq_plugin.config import ResQConfig

__all__ = ["Disagreement", "range_disagreement"]


@dataclass(frozen=True)
class Disagreement:
    """The first setting that ranges depend on and that differs.

    Attributes:
        found: what the ranges were calibrated with, e.g. ``weights='channel'``.
        expected: what the model has, e.g. ``weights='tensor'``.
        line: how to convert a model that the ranges fit.
    """

    found: str
    expected: str
    line: str


def range_disagreement(found: ResQConfig, expected: ResQConfig, layers: Iterable[str]) -> Disagreement | None:
    """Compare everything that ranges depend on.

    That is which layers are converted, their bit widths, and how weights, residuals and keyframes are quantized. The
    interval, the policy and the schedule may differ: they say what is done with the ranges.

    Args:
        found: the configuration that the ranges were found with.
        expected: that of the model they are for.
        layers: names of the converted layers of the model.

    Returns:
        None when the ranges fit.
    """
    line = f"convert(model, {_line(found)})"
    for name in layers:
        if not found.selects(name):
            return Disagreement(f"layer {name} in float", "converted", line)
        theirs, ours = ("->".join(str(side) for side in c.precision_of(name) if side) for c in (found, expected))
        if theirs != ours:
            return Disagreement(f"layer {name} in {theirs}", ours, line)
    settings = ["weights", "keyframe_grid"]
    if found.residual is not None and expected.residual is not None:
        settings.append("reference")
    for key in settings:
        theirs, ours = getattr(found, key), getattr(expected, key)
        if theirs != ours:
            return Disagreement(f"{key}={theirs!r}", f"{key}={ours!r}", line)
    return None


def _line(config: ResQConfig) -> str:
    """The call that makes a configuration whose ranges agree with those of this one."""
    default, settings = ResQConfig(), [repr(config.notation)]
    for key in ("weights", "reference", "keyframe_grid", "include", "exclude"):
        value = getattr(config, key)
        if value != getattr(default, key):
            settings.append(f"{key}={value!r}")
    if config.overrides:
        settings.append(f"overrides={dict(config.overrides)!r}")
    return f"ResQConfig.parse({', '.join(settings)})"
