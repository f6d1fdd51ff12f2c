"""The bit operations of a model, per layer, module and frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resq_plugin.cost.dry_run import UncountedOps
from resq_plugin.errors import ConfigError
from resq_plugin.method import FrameCounts
from resq_plugin.tables import table_text

__all__ = ["Cost", "LayerCost"]


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer over all its calls in a frame, or the sum over the layers of a module.

    Attributes:
        name: qualified name of the layer or module.
        kind: class of the operation such as ``Conv2d``; ``module`` for a sum.
        precision: such as ``W8A8->W4A4``; ``float``; or ``mixed`` for a sum over different ones.
        calls: calls per frame.
        macs: multiply-accumulates per frame.
        bops_keyframe: BOPs of a keyframe; NaN where frames were counted and there was none.
        bops_residual: BOPs of a residual frame, ``policy_bops`` included; NaN likewise.
        bops_per_frame: BOPs per frame, averaged over the interval, or over the frames that were counted.
        policy_bops: BOPs that choosing the bit width takes in a residual frame.
        state_bytes: bytes kept between frames.
    """

    name: str
    kind: str
    precision: str
    calls: int
    macs: int
    bops_keyframe: float
    bops_residual: float
    bops_per_frame: float
    policy_bops: int
    state_bytes: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model; every total is the sum over `layers`. Printed, it is a table of its modules.

    Attributes:
        layers: one row per layer that was called, in the order of the first call.
        interval: T, the frames per interval that averages are over.
        uncounted: what ran and is not counted.
        is_upper_bound: whether a dynamic layer was counted with the highest bit width of its pool.
        frames: the frames that ran, over which averages are; None for whole intervals of T frames.
        is_without_scene_changes: whether scene changes start intervals, too, and nobody counted the frames.
        groups: where keyframes are spread, which layers are refreshed in one frame: number of the group by layer.
    """

    layers: tuple[LayerCost, ...]
    interval: int
    uncounted: tuple[UncountedOps, ...]
    is_upper_bound: bool
    frames: FrameCounts | None = None
    is_without_scene_changes: bool = False
    groups: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        from resq_plugin.cost.table import cost_table, uncounted_summary  # noqa: PLC0415  # which needs this

        lines = [table_text(cost_table(self))]
        lines += [f"In float: {', '.join(self.float_layers)}"] if self.float_layers else []
        lines += [f"Not counted: {uncounted_summary(self)}"] if self.uncounted else []
        return "\n".join(lines)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per frame."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops_keyframe(self) -> float:
        """BOPs of a keyframe; NaN where frames were counted and there was none."""
        return sum(layer.bops_keyframe for layer in self.layers)

    @property
    def bops_residual(self) -> float:
        """BOPs of a residual frame, with the policy's own; NaN where frames were counted and there was none."""
        return sum(layer.bops_residual for layer in self.layers)

    @property
    def bops_per_frame(self) -> float:
        """BOPs per frame, averaged over the interval, or over the frames that were counted."""
        return sum(layer.bops_per_frame for layer in self.layers)

    @property
    def peak_bops(self) -> float:
        """BOPs of the most expensive frame of the interval, which the hardware must keep up with.

        Where keyframes are spread, that is the frame whose layers to refresh take most; the first frame of a video,
        a whole keyframe, is one of its own: `bops_keyframe`.
        """
        if self.groups and (self.frames is None or self.frames.residual):
            return max(self._bops_of(group) for group in set(self.groups.values()))
        kinds = (self.bops_keyframe, self.bops_residual) if self.interval > 1 else (self.bops_keyframe,)
        return max((bops for bops in kinds if not math.isnan(bops)), default=math.nan)

    def _bops_of(self, group: int) -> float:
        """BOPs of a frame that refreshes a group."""
        return sum(
            layer.bops_keyframe if self.groups.get(layer.name) == group else layer.bops_residual
            for layer in self.layers
        )

    @property
    def policy_bops(self) -> int:
        """BOPs that choosing bit widths takes in a residual frame; part of `bops_residual`."""
        return sum(layer.policy_bops for layer in self.layers)

    @property
    def state_bytes(self) -> int:
        """Bytes that one stream keeps between frames."""
        return sum(layer.state_bytes for layer in self.layers)

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the counted layers that stay in float."""
        return tuple(layer.name for layer in self.layers if layer.precision == "float")

    def by_layer(self) -> tuple[LayerCost, ...]:
        """Return one row per layer, in the order of the first call."""
        return self.layers

    def by_module(self, depth: int = 1) -> tuple[LayerCost, ...]:
        """Return one row per module, named by the first ``depth`` parts of its layers' names.

        Raises:
            ConfigError: the depth is below 1.
        """
        if depth < 1:
            msg = f"depth={depth!r} must be at least 1; Cost itself has the totals."
            raise ConfigError(msg)
        groups: dict[str, list[LayerCost]] = {}
        for layer in self.layers:
            groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
        return tuple(_sum(name, layers) for name, layers in groups.items())


def _sum(name: str, layers: Sequence[LayerCost]) -> LayerCost:
    if len(layers) == 1 and layers[0].name == name:
        return layers[0]
    precisions = {layer.precision for layer in layers}
    return LayerCost(
        name=name,
        kind="module",
        precision=precisions.pop() if len(precisions) == 1 else "mixed",
        calls=sum(layer.calls for layer in layers),
        macs=sum(layer.macs for layer in layers),
        bops_keyframe=sum(layer.bops_keyframe for layer in layers),
        bops_residual=sum(layer.bops_residual for layer in layers),
        bops_per_frame=sum(layer.bops_per_frame for layer in layers),
        policy_bops=sum(layer.policy_bops for layer in layers),
        state_bytes=sum(layer.state_bytes for layer in layers),
    )
