"""Bit operations of a model, per layer, frame and interval.

A bit operation is not a well-defined concept. Here, as in §5 of the paper, a layer of M multiply-accumulates (MACs)
with weights of b_w bits and activations of b_a bits takes

    BOPs = M · b_w · b_a

* Counted are convolutions, transposed convolutions and linear layers, each call of them; one fused multiply-add is one
  MAC, and padding is not left out. A layer that stays in float takes 32 × 32 bits in every frame.
* Per frame means averaged over an interval of T frames: (keyframe + (T - 1) · residual) / T. A layer without residual
  precision takes its keyframe BOPs in every frame.
* A dynamic pool of activation bits takes M · b_w · Σ_b share(b) · b, from the share of pixels that got b bits.
  Without shares, max(pool) is used for all pixels: an upper bound. Choosing (Eq. 9-11) costs extra: for every input
  element and every quantizer of the pool one multiply-accumulate (subtract, square, accumulate) at b_max × b_max bits,
  so elements · len(pool) · b_max² per residual frame, which is part of the layer's residual BOPs.
* State is what a layer call keeps between frames on a device: the reference of its input (4 bytes per element of x_k
  if ``reference='float'``, else the bytes that hold the keyframe's activation bits) and the accumulator z_k, 4 bytes
  per output element.
* All else that runs (pooling, resizing, additions, batch norm that is not folded) is not counted but listed. A float
  model lists its batch norms, although `convert` will fold most of them.

Counts are for the batch size of the given shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from resq_plugin.backends import torch_class
from resq_plugin.config import Precision, ResQConfig
from resq_plugin.cost.dry_run import COUNTED_LAYERS, LayerCall, UncountedOps, dry_run
from resq_plugin.errors import ConfigError, nearest
from resq_plugin.method import ResidualLayer

__all__ = ["Cost", "LayerCost", "UncountedOps", "measure_cost"]

FLOAT_BITS = 32
FLOAT_BYTES = 4


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer over all its calls in a frame, or the sum over the layers of a module.

    Attributes:
        name: qualified name of the layer or module.
        kind: class of the operation such as ``Conv2d``; ``module`` for a sum.
        precision: such as ``W8A8->W4A4``; ``float``; or ``mixed`` for a sum over different ones.
        calls: calls per frame.
        macs: multiply-accumulates per frame.
        bops_keyframe: BOPs of a keyframe.
        bops_residual: BOPs of a residual frame, ``policy_bops`` included.
        bops_per_frame: BOPs per frame, averaged over the interval.
        policy_bops: BOPs that choosing the bit width takes in a residual frame.
        state_bytes: bytes kept between frames.
    """

    name: str
    kind: str
    precision: str
    calls: int
    macs: int
    bops_keyframe: int
    bops_residual: float
    bops_per_frame: float
    policy_bops: int
    state_bytes: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model; every total is the sum over `layers`.

    Attributes:
        layers: one row per layer that was called, in the order of the first call.
        interval: T, the frames per interval that averages are over.
        uncounted: what ran and is not counted.
        is_upper_bound: whether a dynamic layer was counted with the highest bit width of its pool.
    """

    layers: tuple[LayerCost, ...]
    interval: int
    uncounted: tuple[UncountedOps, ...]
    is_upper_bound: bool

    @property
    def macs(self) -> int:
        """Multiply-accumulates per frame."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops_keyframe(self) -> int:
        """BOPs of a keyframe."""
        return sum(layer.bops_keyframe for layer in self.layers)

    @property
    def bops_residual(self) -> float:
        """BOPs of a residual frame, with the policy's own."""
        return sum(layer.bops_residual for layer in self.layers)

    @property
    def bops_per_frame(self) -> float:
        """BOPs per frame, averaged over the interval."""
        return sum(layer.bops_per_frame for layer in self.layers)

    @property
    def peak_bops(self) -> float:
        """BOPs of the most expensive frame of the interval, which the hardware must keep up with."""
        return max(self.bops_keyframe, self.bops_residual) if self.interval > 1 else self.bops_keyframe

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


def measure_cost(
    model: nn.Module,
    shape: Sequence[int],
    config: ResQConfig | None = None,
    shares: Mapping[str, Mapping[int, float]] | None = None,
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

    Raises:
        ConfigError: the shape or the shares are impossible.
        ResQError: the model fails on an input of that shape.
    """
    run = dry_run(model, shape)
    calls: dict[str, list[LayerCall]] = {}
    for call in run.calls:
        calls.setdefault(call.name, []).append(call)
    groups = [(_settings(group[0], config), group) for group in calls.values()]
    names = {settings.name for settings, _ in groups}
    shares = shares or {}
    for name in shares:
        if name not in names:
            msg = f"shares name layer {name!r}, which does not run in this model.{nearest(name, names)}"
            raise ConfigError(msg)
    rows = tuple(_layer_cost(settings, group, shares.get(settings.name)) for settings, group in groups)
    is_upper_bound = any(settings.is_dynamic and settings.name not in shares for settings, _ in groups)
    return Cost(rows, _interval(model, config), run.uncounted, is_upper_bound)


@dataclass(frozen=True)
class _Settings:
    """What counting a layer needs; ``keyframe`` is None for a layer that stays in float."""

    name: str
    keyframe: Precision | None = None
    residual: Precision | None = None
    interval: int = 1
    reference: str = "float"

    @property
    def is_dynamic(self) -> bool:
        """Whether there is a choice between bit widths."""
        return self.residual is not None and len(self.residual.pool) > 1


def _settings(call: LayerCall, config: ResQConfig | None) -> _Settings:
    """How a layer runs: as it was converted, or as `config` would convert it."""
    layer, name = call.layer, call.name
    if isinstance(layer, ResidualLayer):
        own = layer.settings
        if config is None:
            return _Settings(own.name, own.keyframe, own.residual, own.config.interval, own.config.reference)
        name = own.name
    elif torch_class(type(layer)) not in COUNTED_LAYERS:
        return _Settings(name)  # a subclass may compute something else, so `convert` leaves it in float
    if config is None or not config.selects(name):
        return _Settings(name)
    return _Settings(name, *config.precision_of(name), config.interval, config.reference)


def _interval(model: nn.Module, config: ResQConfig | None) -> int:
    if config is not None:
        return config.interval
    return next(
        (module.settings.config.interval for module in model.modules() if isinstance(module, ResidualLayer)), 1
    )


def _layer_cost(settings: _Settings, calls: Sequence[LayerCall], shares: Mapping[int, float] | None) -> LayerCost:
    macs = sum(call.macs for call in calls)
    kind = _kind(calls[0].layer)
    keyframe, residual = settings.keyframe, settings.residual
    if keyframe is None:
        bops = macs * FLOAT_BITS * FLOAT_BITS
        return LayerCost(settings.name, kind, "float", len(calls), macs, bops, bops, bops, 0, 0)
    bops_keyframe = macs * keyframe.weight * max(keyframe.pool)
    if residual is None:
        precision = str(keyframe)
        return LayerCost(
            settings.name, kind, precision, len(calls), macs, bops_keyframe, bops_keyframe, bops_keyframe, 0, 0
        )
    policy_bops = 0
    bits: float = max(residual.pool)
    if settings.is_dynamic:
        policy_bops = sum(call.inputs for call in calls) * len(residual.pool) * max(residual.pool) ** 2
        if shares is not None:
            bits = _mean_bits(settings.name, shares, residual.pool)
    elif shares is not None:
        msg = f"shares name layer {settings.name!r}, whose residual precision {residual} is not a dynamic pool."
        raise ConfigError(msg)
    bops_residual = macs * residual.weight * bits + policy_bops
    per_input = FLOAT_BYTES if settings.reference == "float" else -(-max(keyframe.pool) // 8)
    return LayerCost(
        name=settings.name,
        kind=kind,
        precision=f"{keyframe}->{residual}",
        calls=len(calls),
        macs=macs,
        bops_keyframe=bops_keyframe,
        bops_residual=bops_residual,
        bops_per_frame=(bops_keyframe + (settings.interval - 1) * bops_residual) / settings.interval,
        policy_bops=policy_bops,
        state_bytes=sum(call.inputs * per_input + call.outputs * FLOAT_BYTES for call in calls),
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
