"""A plan: a configuration, what it was found to cost, and why each layer has what it has."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resq_plugin.config import ResQConfig
from resq_plugin.errors import ConfigError
from resq_plugin.files import write_text
from resq_plugin.planning.optimize import Assignment, hull
from resq_plugin.planning.options import Option
from resq_plugin.planning.target import Choice
from resq_plugin.planning.trial import Verified

__all__ = ["LayerPlan", "Plan", "Point", "config_of", "explain", "read_plan"]

PLAN_VERSION = 1


@dataclass(frozen=True)
class Point:
    """One plan of the front.

    Attributes:
        config: what to convert with.
        error: predicted divergence from the float output, per output value.
        gbops: predicted, per frame.
        relative: of W8A8 in every frame, predicted.
        state_megabytes: kept between frames.
        verified: what it was measured to be on held-out frames; None where it was not measured.
    """

    config: ResQConfig
    error: float
    gbops: float
    relative: float
    state_megabytes: float
    verified: Verified | None = None


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a plan.

    Attributes:
        name: of the layer.
        choice: keyframe and residual precision, and τ.
        bops_share: its part of the plan's bit operations.
        error_share: its part of the plan's error.
        reason: what the next coarser and the next finer choice would do.
    """

    name: str
    choice: Choice
    bops_share: float
    error_share: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """What to run: ``convert(model, plan.config)``.

    Attributes:
        point: of the front.
        layers: in the order in which the network calls them.
    """

    point: Point
    layers: tuple[LayerPlan, ...]

    @property
    def config(self) -> ResQConfig:
        """What to convert with."""
        return self.point.config

    def save(self, path: str | Path) -> Path:
        """Write the plan: JSON that `read_plan` reads, or, as ``.py``, a fragment for an mm config's ``_base_``.

        Raises:
            ConfigError: the name ends in neither, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".json", ".py"):
            msg = f"{path} names no kind of plan; write plan.json, or plan.py for a config of MMSeg or MMPose."
            raise ConfigError(msg)
        write_text(path, self.fragment() if path.suffix == ".py" else self._json(), ConfigError)
        return path

    def _json(self) -> str:
        found = self.point.verified
        values = {
            "plan": PLAN_VERSION,
            "config": self.config.to_dict(),
            "predicted": {
                "divergence": self.point.error,
                "gbops_per_frame": self.point.gbops,
                "relative_bops": self.point.relative,
                "state_megabytes": self.point.state_megabytes,
            },
            "verified": None if found is None else dataclasses.asdict(found),
            "layers": [{**dataclasses.asdict(layer), "choice": str(layer.choice)} for layer in self.layers],
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def fragment(self) -> str:
        """The lines that bring the plan into a config of MMSegmentation or MMPose."""
        config, reasons = self.config, {layer.name: layer.reason for layer in self.layers}
        values, default = config.to_dict(), ResQConfig().to_dict()
        own = dict(values.pop("overrides"))
        lines = [
            "# A plan of resq search. A config of its own runs it:",
            "#     _base_ = [MODEL, 'plan.py']",
            "#     default_hooks = dict(resq=dict(type='resq_mmengine.ResQHook', priority='VERY_HIGH'))",
            "resq = dict(",
        ]
        for key, value in values.items():
            if key == "version" or (value == default[key] and key not in ("precision", "interval")):
                continue
            is_section = isinstance(value, dict)
            shown = {k: v for k, v in value.items() if v != default[key][k]} if is_section else value
            lines.append(f"    {key}={shown!r},")
        if own:
            lines.append("    overrides={")
            lines += [
                f"        {name!r}: {text!r},  # {reasons.get(name, '')}".rstrip(" #") for name, text in own.items()
            ]
            lines.append("    },")
        lines += [")", ""]
        return "\n".join(lines)


def read_plan(path: str | Path) -> ResQConfig:
    """Read the configuration of a plan that `Plan.save` wrote as JSON, edited or not.

    Raises:
        ConfigError: it is no such file, or what was written into it is impossible.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        version, config = values["plan"], values["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is no plan ({error!r}); resq search and Plan.save write plan.json."
        raise ConfigError(msg) from error
    if version != PLAN_VERSION:
        msg = f"{path} is a plan of version {version!r}; this release reads version {PLAN_VERSION}."
        raise ConfigError(msg)
    try:
        return ResQConfig.from_dict(config)
    except ConfigError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error


def config_of(plan: Assignment, settings: Mapping[str, Any]) -> ResQConfig:
    """The configuration of a plan: what most layers have, and overrides.

    Args:
        plan: a choice for every layer.
        settings: further fields of `ResQConfig`.
    """
    notations = Counter(choice.notation for choice in plan.choices.values())
    streams = [text for text in notations if plan.interval == 1 or Choice.parse(text).residual is not None]
    common = min(streams or notations, key=lambda text: (-notations[text], text))
    taus = Counter(choice.threshold for choice in plan.choices.values() if choice.threshold is not None)
    tau = min(taus, key=lambda value: (-taus[value], value)) if taus else None
    overrides = {name: choice.notation for name, choice in plan.choices.items() if choice.notation != common}
    policy = dict(settings.get("policy", {}))
    if tau is not None:
        policy["threshold"] = tau
        policy["thresholds"] = {
            name: choice.threshold for name, choice in plan.choices.items() if choice.threshold not in (None, tau)
        }
    values = {**settings, "policy": policy, "overrides": overrides, "interval": plan.interval}
    if plan.interval > 1:
        values["reference"] = plan.reference
        stateless = [name for name, choice in plan.choices.items() if choice.residual is None]
        if stateless:
            values["state"] = {**settings.get("state", {}), "stateless": stateless}
    return ResQConfig.parse(common, **values)


def explain(plan: Assignment, menus: Mapping[str, Sequence[Option]]) -> tuple[LayerPlan, ...]:
    """Say of every layer what it has, and what its neighbours on its own front would change.

    Args:
        plan: a choice for every layer.
        menus: options by layer at the plan's T.
    """
    found = []
    for name, choice in plan.choices.items():
        option = next(option for option in menus[name] if option.choice == choice)
        path = hull(menus[name])
        finer = [other for other in path if other.error < option.error]
        coarser = [other for other in path if other.bops < option.bops and other.error > option.error]
        parts = []
        if coarser:
            other = coarser[0]
            saved, more = option.bops - other.bops, other.error - option.error
            parts.append(f"{other.choice} saves {_share(saved, plan.bops)} and adds {_share(more, plan.error)} error")
        else:
            parts.append("nothing coarser is allowed")
        if finer:
            other = finer[-1]
            more, saved = other.bops - option.bops, option.error - other.error
            parts.append(f"{other.choice} costs {_share(more, plan.bops)} and takes {_share(saved, plan.error)} error")
        else:
            parts.append("nothing finer is better")
        shares = option.bops / max(plan.bops, 1e-30), option.error / max(plan.error, 1e-30)
        found.append(LayerPlan(name, choice, *shares, "; ".join(parts)))
    return tuple(found)


def _share(value: float, total: float) -> str:
    return f"{value / max(total, 1e-30):.2%}"
