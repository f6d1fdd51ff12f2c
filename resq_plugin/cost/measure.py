"""Bit operations of a model, per layer, frame and interval.

A bit operation is not a well-defined concept. Here, as in §5 of the paper, a layer of M multiply-accumulates (MACs)
with weights of b_w bits and activations of b_a bits takes

    BOPs = M · b_w · b_a

* Counted are convolutions, transposed convolutions and linear layers, each call of them; one fused multiply-add is one
  MAC, and padding is not left out. A layer that stays in float takes 32 × 32 bits in every frame.
* Per frame means averaged over an interval of T frames: (keyframe + (T - 1) · residual) / T. A layer without residual
  precision takes its keyframe BOPs in every frame. Where content decides which frames are keyframes, nobody knows
  before: pass ``frames=video.frame_counts``, the K keyframes and R residual frames that ran, for
  (K · keyframe + R · residual) / (K + R). Where keyframes are spread, every layer takes its keyframe BOPs once in T
  frames, so averages are the same; the peak is that of the frame whose layers to refresh take most, once the video
  has begun: its first frame is a whole keyframe.
* A dynamic pool of activation bits takes M · b_w · Σ_b share(b) · b, from the share of pixels that got b bits.
  Without shares, max(pool) is used for all pixels: an upper bound. Choosing (Eq. 9-11) costs extra: for every input
  element and every quantizer of the pool one multiply-accumulate (subtract, square, accumulate) at b_max × b_max bits,
  so elements · len(pool) · b_max² per residual frame, which is part of the layer's residual BOPs.
* State is what layer calls keep between frames, as `Stream.state_bytes` counts it of a stream in float32. The
  reference of the input takes 4 bytes per element of x_k (``reference='float'``) or x̂_t (``'running'``, a sum on no
  grid), or the bytes that hold the keyframe's activation bits (``'quantized'``); z_k takes 4 bytes per output element.
  With `StateConfig` both take 1 or 2 bytes, and 8 for the grid of every video and channel, where that is less. What
  several layers keep of one tensor counts once, for the first of them: the same x_k, the z_k of the layer before, or
  x̂_k on the same grid, which is known of a calibrated model only.
* All else that runs (pooling, resizing, additions, batch norm that is not folded) is not counted but listed. A float
  model lists its batch norms, although `convert` will fold most of them.

Counts are for the batch size of the given shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from resq_plugin.backends import check_patterns, torch_class
from resq_plugin.config import Precision, ResQConfig, StateConfig
from resq_plugin.cost.dry_run import COUNTED_LAYERS, LayerCall, dry_run
from resq_plugin.cost.result import Cost, LayerCost
from resq_plugin.cost.state import Kept, state_bytes_of
from resq_plugin.errors import ConfigError, nearest
from resq_plugin.method import FrameCounts, ResidualLayer, refresh_groups

__all__ = ["FLOAT_BITS", "measure_cost"]

FLOAT_BITS = 32


def measure_cost(
    model: nn.Module,
    shape: Sequence[int],
    config: ResQConfig | None = None,
    shares: Mapping[str, Mapping[int, float]] | None = None,
    *,
    frames: FrameCounts | None = None,
    arguments: Sequence[Any] = (),
) -> Cost:
    """Count the bit operations of a model. Nothing is computed, no weights are needed, the model stays as it is.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, kernel_size=3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, kernel_size=1))
    >>> cost = measure_cost(net, (1, 3, 10, 20), ResQConfig.parse("W8A8->W4A4", interval=2))
    >>> cost.macs  # 200 pixels · (8 · 3 · 9 + 4 · 8)
    49600
    >>> cost.bops_keyframe == 49600 * 8 * 8, cost.bops_per_frame == 49600 * (64 + 16) / 2
    (True, True)
    >>> print(*cost.uncounted)
    1: aten.relu x1

    Args:
        model: converted, calibrated or not; or a float model.
        shape: of the frame, normally (N, C, H, W); N videos in step cost N times as much.
        config: what a float model would be converted with; for a converted model, what to count instead of its own
            configuration. A float model without one is counted in float.
        shares: share of pixels per bit width, by name of the dynamic layer, e.g.
            ``{"conv1": {0: 0.7, 4: 0.2, 8: 0.1}}``; `Stream.bit_shares` measures them.
        frames: keyframes and residual frames that ran, ``video.frame_counts`` of a stream, which averages are then
            over; needed where scene changes start intervals, too.
        arguments: of the model behind the frame, such as a number of objects.

    Raises:
        ConfigError: the shape or the shares are impossible, no frame ran, or a pattern of ``config`` matches no layer.
        ResQError: the model fails on an input of that shape.
    """
    _check_patterns(model, config)
    run = dry_run(model, shape, arguments)
    calls: dict[str, list[LayerCall]] = {}
    for call in run.calls:
        calls.setdefault(call.name, []).append(call)
    groups = [(_settings(group[0], config), group) for group in calls.values()]
    names = {settings.name for settings, _ in groups}
    if frames is not None and not frames.total:
        msg = "frames counts no frame at all; run the stream first, or leave frames out for whole intervals."
        raise ConfigError(msg)
    shares = shares or {}
    for name in shares:
        if name not in names:
            msg = f"shares name layer {name!r}, which does not run in this model.{nearest(name, names)}"
            raise ConfigError(msg)
    own = _config(model, config)
    schedule = "interval" if own is None else own.schedule.kind
    costs = [_layer_cost(settings, group, shares) for settings, group in groups]
    work = {
        settings.name: int(cost.bops_keyframe)
        for cost, (settings, _) in zip(costs, groups, strict=True)
        if settings.residual is not None
    }
    refreshed = refresh_groups(work, own.interval) if own is not None and schedule == "spread" else {}
    # Layers that take their references in different frames do not share them.
    kept = {group[0].name: replace(settings.kept, group=refreshed.get(settings.name, 0)) for settings, group in groups}
    state = state_bytes_of(run.calls, lambda call: kept[call.name])
    costs = [
        replace(cost, state_bytes=state.get(group[0].name, 0)) for cost, (_, group) in zip(costs, groups, strict=True)
    ]
    rows = tuple(
        _averaged(cost, settings.interval, frames, is_spread=schedule == "spread" and settings.residual is not None)
        for cost, (settings, _) in zip(costs, groups, strict=True)
    )
    is_upper_bound = any(settings.is_dynamic and settings.name not in shares for settings, _ in groups)
    return Cost(
        layers=rows,
        interval=1 if own is None else own.interval,
        uncounted=run.uncounted,
        is_upper_bound=is_upper_bound and (frames is None or frames.residual > 0),
        frames=frames,
        is_without_scene_changes=frames is None and schedule == "scene_change",
        groups=refreshed,
    )


@dataclass(frozen=True)
class _Settings:
    """What counting a layer needs; ``keyframe`` is None for a layer that stays in float."""

    name: str
    keyframe: Precision | None = None
    residual: Precision | None = None
    interval: int = 1
    reference: str = "float"
    state: StateConfig = field(default_factory=StateConfig)

    @property
    def is_dynamic(self) -> bool:
        """Whether there is a choice between bit widths."""
        return self.residual is not None and len(self.residual.pool) > 1

    @property
    def kept(self) -> Kept:
        """What state depends on."""
        return Kept(self.keyframe, self.residual, self.reference, self.state)


def _settings(call: LayerCall, config: ResQConfig | None) -> _Settings:
    """How a layer runs: as it was converted, or as `config` would convert it."""
    layer, name = call.layer, call.name
    if isinstance(layer, ResidualLayer):
        own = layer.settings
        if config is None:
            return _Settings(
                own.name, own.keyframe, own.residual, own.config.interval, own.config.reference, own.config.state
            )
        name = own.name
    elif torch_class(type(layer)) not in COUNTED_LAYERS:
        return _Settings(name)  # a subclass may compute something else, so `convert` leaves it in float
    if config is None or not config.selects(name):
        return _Settings(name)
    return _Settings(name, *config.precision_of(name), config.interval, config.reference, config.state)


def _check_patterns(model: nn.Module, config: ResQConfig | None) -> None:
    """As `convert` does."""
    names = [
        module.settings.name if isinstance(module, ResidualLayer) else name
        for name, module in model.named_modules()
        if isinstance(module, ResidualLayer) or torch_class(type(module)) in COUNTED_LAYERS
    ]
    if config is not None and names:
        check_patterns(config, names)


def _config(model: nn.Module, config: ResQConfig | None) -> ResQConfig | None:
    if config is not None:
        return config
    return next((module.settings.config for module in model.modules() if isinstance(module, ResidualLayer)), None)


def _layer_cost(
    settings: _Settings,
    calls: Sequence[LayerCall],
    shares: Mapping[str, Mapping[int, float]],
) -> LayerCost:
    """Cost of a keyframe and of a residual frame."""
    macs, keyframe, residual = sum(call.macs for call in calls), settings.keyframe, settings.residual
    cost = LayerCost(settings.name, _kind(calls[0].layer), "float", len(calls), macs, 0, 0, 0, 0, 0)
    if keyframe is None:
        bops = macs * FLOAT_BITS * FLOAT_BITS
        return replace(cost, bops_keyframe=bops, bops_residual=bops)
    bops = macs * keyframe.weight * max(keyframe.pool)
    if residual is None:
        return replace(cost, precision=str(keyframe), bops_keyframe=bops, bops_residual=bops)
    policy_bops, bits, found = 0, float(max(residual.pool)), shares.get(settings.name)
    if settings.is_dynamic:
        policy_bops = sum(call.inputs for call in calls) * len(residual.pool) * max(residual.pool) ** 2
        if found is not None:
            bits = _mean_bits(settings.name, found, residual.pool)
    elif found is not None:
        msg = f"shares name layer {settings.name!r}, whose residual precision {residual} is not a dynamic pool."
        raise ConfigError(msg)
    return replace(
        cost,
        precision=f"{keyframe}->{residual}",
        bops_keyframe=bops,
        bops_residual=macs * residual.weight * bits + policy_bops,
        policy_bops=policy_bops,
    )


def _averaged(cost: LayerCost, interval: int, frames: FrameCounts | None, *, is_spread: bool) -> LayerCost:
    """Average over whole intervals, or over the frames that ran; what did not run is not known."""
    mean = cost.bops_keyframe
    if cost.bops_keyframe != cost.bops_residual:
        mean = (cost.bops_keyframe + (interval - 1) * cost.bops_residual) / interval
    if frames is None:
        return replace(cost, bops_per_frame=mean)
    other = mean if is_spread else cost.bops_residual
    return replace(
        cost,
        bops_per_frame=(frames.keyframes * cost.bops_keyframe + frames.residual * other) / frames.total,
        bops_keyframe=cost.bops_keyframe if frames.keyframes or is_spread else math.nan,
        bops_residual=cost.bops_residual if frames.residual else math.nan,
    )


def _mean_bits(name: str, shares: Mapping[int, float], pool: tuple[int, ...]) -> float:
    unknown = sorted(set(shares) - set(pool))
    total = sum(shares.values())
    if unknown or min(shares.values(), default=0) < 0 or not abs(total - 1) <= 1e-3:
        msg = (
            f"shares[{name!r}]={dict(shares)} must give shares of the pool {pool}, at least 0 each, that add up "
            "to 1, as Stream.bit_shares() returns them."
        )
        raise ConfigError(msg)
    return sum(share * bits for bits, share in shares.items())


def _kind(layer: nn.Module) -> str:
    return next(kind.__name__ for kind in COUNTED_LAYERS if isinstance(layer, kind))
