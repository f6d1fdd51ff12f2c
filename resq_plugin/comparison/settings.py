"""What a sweep runs: notations and configurations, at every interval and threshold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resq_plugin.config import ResQConfig
from resq_plugin.errors import ConfigError

__all__ = ["DEFAULT_SETTINGS", "Setting", "checkpoint_path", "expand", "groups_of"]

DEFAULT_SETTINGS = (
    "W8A8",
    "W4A8",
    "W8A4",
    "W4A4",
    "W8A8->W8A4",
    "W8A8->W4A4",
    "W8A8->W8A{0,4,8}",
    "W8A8->W4A{0,4,8}",
)
"""Frame quantization, ResQ and Dynamic-ResQ of the paper's precisions."""

LONGEST = 120
"""Characters of a file's name, short of what file systems allow."""


@dataclass(frozen=True)
class Setting:
    """One row of a comparison.

    Attributes:
        config: what the model is converted with; None is the float model.
    """

    config: ResQConfig | None = None

    @property
    def scheme(self) -> str:
        """``float``, ``frame``, ``resq`` or ``dynamic``."""
        if self.config is None:
            return "float"
        if self.config.residual is None:
            return "frame"
        return "dynamic" if self.config.residual.is_dynamic else "resq"

    @property
    def interval(self) -> int:
        """T; 1 where every frame is run alike."""
        return 1 if self.config is None or self.config.residual is None else self.config.interval

    @property
    def threshold(self) -> float | None:
        """τ of a dynamic pool."""
        return self.config.policy.threshold if self.config is not None and self.scheme == "dynamic" else None

    @property
    def precision(self) -> str:
        """The paper's notation."""
        return "W32A32" if self.config is None else self.config.notation

    def __str__(self) -> str:
        parts = [self.precision.replace("->", "→") if self.config is not None else "float"]
        parts += [f"T={self.interval}"] if self.interval > 1 else []
        parts += [f"τ={self.threshold:g}"] if self.threshold is not None else []
        return ", ".join(parts)

    @property
    def key(self) -> str:
        """A name that no other setting has: what is shown, and whatever else is not the default."""
        if self.config is None:
            return "float"
        values = self.config.to_dict()
        # The T of frame quantization is not shown, yet tells on which keyframes ranges are found.
        told = {} if self.config.residual is None else {"interval": self.config.interval}
        default = ResQConfig.parse(self.config.notation, **told).to_dict()
        shown = {"policy"} if self.threshold is None else set()
        changed = {key: value for key, value in values.items() if value != default[key] and key not in shown}
        if "policy" in changed:
            policy = {k: v for k, v in values["policy"].items() if v != default["policy"][k] and k != "threshold"}
            changed.pop("policy")
            changed |= policy
        return " ".join([str(self), *(f"{key}={value}" for key, value in changed.items())])

    @property
    def slug(self) -> str:
        """The key as the name of a file.

        Of a long one, such as that of a plan per layer, or one with patterns, of which a file's name tells some not
        apart, it is the start and a checksum.
        """
        slug = re.sub(r"[^a-z0-9.]+", "-", self.key.lower().replace("τ", "tau")).strip("-")
        if len(slug) <= LONGEST and not _patterns(self.config):
            return slug
        return f"{slug[:LONGEST].strip('-')}-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"


def _patterns(config: ResQConfig | None) -> bool:
    """Whether it has patterns of its own."""
    return config is not None and (
        config.include != ("*",)
        or bool(config.exclude or config.overrides or config.policy.thresholds or config.state.stateless)
    )


def groups_of(plan: Sequence[Setting]) -> list[list[Setting]]:
    """Group settings whose calibrations look at the same frames, those with residuals first, as `Statistics` asks.

    >>> plan = expand(["W8A8", "W8A8->W4A4", "W4A8"], (2, 3))
    >>> [[str(setting) for setting in group] for group in groups_of(plan)]
    [['float'], ['W8A8→W4A4, T=2', 'W8A8', 'W4A8'], ['W8A8→W4A4, T=3']]
    """
    groups: dict[Hashable, list[Setting]] = {}
    for setting in plan:
        config = setting.config
        looks = config and (
            *(config.interval, config.reference == "running", config.calibration, config.schedule.kind),
            *(config.include, config.exclude, config.backend),
        )
        groups.setdefault(looks, []).append(setting)
    return [sorted(group, key=lambda setting: setting.scheme == "frame") for group in groups.values()]


def expand(
    settings: Sequence[str | ResQConfig],
    intervals: Sequence[int] = (3,),
    thresholds: Sequence[float] = (0.1,),
    **common: Any,
) -> list[Setting]:
    """Return the float setting and then every setting once, in the order given.

    Args:
        settings: the paper's notation, which runs at every interval and threshold that it has a use for; or
            configurations, which run as they are.
        intervals: T of the notations with residual frames.
        thresholds: τ of the notations with a dynamic pool.
        common: further fields of `ResQConfig` for the notations, e.g. ``weights="channel"``.

    Raises:
        ConfigError: there is no setting, interval or threshold, or one is impossible.

    Examples:
        >>> [str(setting) for setting in expand(["W8A8", "W8A8->W4A{0,4}"], (2, 3), (0.1,))]
        ['float', 'W8A8', 'W8A8→W4A{0,4}, T=2, τ=0.1', 'W8A8→W4A{0,4}, T=3, τ=0.1']
    """
    if isinstance(settings, (str, ResQConfig)):
        settings = [settings]
    for key, values in (("settings", settings), ("intervals", intervals), ("thresholds", thresholds)):
        if not isinstance(values, (list, tuple)) or not values:
            msg = f"{key}={values!r} is not allowed; write a list of at least one, e.g. {_EXAMPLES[key]}."
            raise ConfigError(msg)
    _refuse_overruled(common)
    found = dict.fromkeys(
        Setting(config) for item in settings for config in _configs(item, intervals, thresholds, common)
    )
    return [Setting(), *found]


_EXAMPLES = {
    "settings": "settings=['W8A8', 'W8A8->W4A4']",
    "intervals": "intervals=[3]",
    "thresholds": "thresholds=[0.1]",
}


def _refuse_overruled(common: dict[str, Any]) -> None:
    """Refuse what ``intervals`` and ``thresholds`` would overrule."""
    policy = common.get("policy")
    threshold = policy.get("threshold") if isinstance(policy, dict) else None
    for key, value, many in (
        ("interval", common.get("interval"), "intervals"),
        ("threshold", common.get("threshold"), "thresholds"),
        ("policy.threshold", threshold, "thresholds"),
    ):
        if value is not None:
            msg = f"{key}={value!r} is given for all settings at once by a list; write {many}=[{value!r}]."
            raise ConfigError(msg)


def _configs(
    item: str | ResQConfig, intervals: Sequence[int], thresholds: Sequence[float], common: dict[str, Any]
) -> Iterator[ResQConfig]:
    if isinstance(item, ResQConfig):
        yield item
        return
    base = ResQConfig.parse(item, **common)
    if base.residual is None:
        yield base.replace(interval=intervals[0])  # on the same keyframes as ResQ
        return
    policy = dict(common.get("policy") or {}) if isinstance(common.get("policy"), dict) else {}
    for interval in intervals:
        for threshold in thresholds if base.residual.is_dynamic else (None,):
            changes = {} if threshold is None else {"policy": {**policy, "threshold": threshold}}
            yield base.replace(interval=interval, **changes)


def checkpoint_path(folder: Path, setting: Setting) -> Path:
    """Where a comparison in a folder keeps the calibrated model of a setting."""
    return folder / "checkpoints" / f"{setting.slug}.pth"
