"""What each choice of one layer does to the output of the network, distance by distance from the keyframe.

A choice is run as a stream would run it, on the windows that were seen of a float run: the keyframe, then every
residual frame with its reference, its pool and its policy. The error e of the layer's output at each window is
weighed with the gradients that random scores of the output have there:

    effect = 1/2 · mean over scores of Σ over windows (Σ over positions and channels g · e)²

the second-order change of the output (KL divergence to float, or squared error). Windows count as independent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from resq_plugin.backends import TorchResidualLayer, quantize_difference
from resq_plugin.calibration import PathSearch, apply_to_windows, weight_at
from resq_plugin.config import PolicyConfig, Precision
from resq_plugin.method import fake_quantize, scale_from_range
from resq_plugin.planning.observe import LayerView, View

__all__ = ["Effect", "LayerStudy", "Scheme", "distances"]

EVERY = 4
"""Ranges are searched on every n-th frame."""


@dataclass(frozen=True)
class Scheme:
    """What all layers share.

    Attributes:
        reference: of residuals.
        channel: whether weights have a scale per output channel.
        unsigned: whether keyframes may have an unsigned grid.
    """

    reference: str = "float"
    channel: bool = True
    unsigned: bool = True


@dataclass(frozen=True)
class Effect:
    """What a choice does at t = 0, 1, ..., T - 1.

    Attributes:
        error: change of the output, per frame.
        bits: mean bit width of activations.
    """

    error: tuple[float, ...]
    bits: tuple[float, ...]


@dataclass
class _Group:
    """Windows of one shape over intervals of one length."""

    x: list[Tensor]
    z: list[Tensor]
    gradients: list[list[Tensor]]
    weight: Tensor
    inside: Tensor


class LayerStudy:
    """One layer, its windows, and choices tried on them.

    Args:
        layer: with its batch norm folded.
        seen: what was observed of it.
        scheme: what all layers share.
        policy: granularity of the choice within pools.
        candidates: r of Eq. 8.
    """

    def __init__(
        self, layer: TorchResidualLayer, seen: LayerView, scheme: Scheme, policy: PolicyConfig, candidates: int = 20
    ) -> None:
        self.layer, self.scheme, self.policy, self.candidates = layer, scheme, policy, candidates
        self.signed = not scheme.unsigned or seen.lowest < 0
        self.norm = torch.tensor(seen.activation_norm)
        self.apply = partial(apply_to_windows, layer)
        self._weights: dict[int, Tensor] = {}
        self._scales: dict[tuple[object, ...], Tensor] = {}
        self.groups = [self._group(views) for views in _alike(seen.views)]
        self.length = max(len(group.x) for group in self.groups)

    def _group(self, views: Sequence[View]) -> _Group:
        count = len(views[0].inputs)
        weight = self.layer.weight_of("float")
        x = [torch.cat([view.inputs[t] for view in views]) for t in range(count)]
        z = list(self.apply(torch.cat(x), weight).chunk(count))
        scores = len(views[0].gradients[0])
        windows = views[0].gradients[0][0].dim() > 0
        join = torch.cat if windows else torch.stack
        gradients = [[join([view.gradients[t][s] for view in views]) for s in range(scores)] for t in range(count)]
        shares = [torch.full((len(view.inputs[0]),), 1 / view.share) for view in views]
        inside = torch.cat([view.inside for view in views]).double()
        return _Group(x, z, gradients, torch.cat(shares).to(x[0].device), inside)

    def weight(self, bits: int) -> Tensor:
        """ŵ of that bit width."""
        if bits not in self._weights:
            self._weights[bits] = weight_at(self.layer, bits, channel=self.scheme.channel)
        return self._weights[bits]

    def _scale(self, key: tuple[object, ...], batches: Sequence[Tensor], bits: int, *, signed: bool) -> Tensor:
        """Scale by the search of Eq. 8."""
        if key not in self._scales:
            targets = [self.apply(x, self.layer.weight_of("float")) for x in batches]
            ends = [torch.aminmax(x) for x in batches]
            bounds = min(float(low) for low, _ in ends), max(float(high) for _, high in ends)
            path = PathSearch(batches, targets, bounds, signed, self.candidates, self.apply)
            half = torch.tensor(next(iter(path.rank(self.weight(bits), bits))), dtype=torch.float64)
            self._scales[key] = scale_from_range(-half, half, bits, signed=signed).to(batches[0])
        return self._scales[key]

    def keyframe_scale(self, bits: int) -> Tensor:
        """S of Φ_a."""
        batches = [torch.cat(group.x[::EVERY]) for group in self.groups]
        return self._scale(("keyframe", bits), batches, bits, signed=self.signed)

    def quantized_keyframe(self, x: Tensor, bits: int) -> Tensor:
        """q(x; Φ_a)."""
        return fake_quantize(x, self.keyframe_scale(bits), bits, signed=self.signed)

    def residual_scale(self, bits: int, keyframe_bits: int) -> Tensor:
        """S of one quantizer of Θ_a."""
        reference = self.scheme.reference
        key = ("residual", bits, keyframe_bits if reference != "float" else 0)
        if bits == 0 or key in self._scales:
            return self._scales.get(key, torch.ones((), device=self.groups[0].z[0].device))
        batches = []
        for group in self.groups:
            deltas = []
            for t in range(1, len(group.x), EVERY):
                x = group.x[t - 1 if reference == "running" else 0]
                deltas.append(group.x[t] - (x if reference == "float" else self.quantized_keyframe(x, keyframe_bits)))
            batches += [torch.cat(deltas)] if deltas else []
        if not any(bool(batch.any()) for batch in batches):
            batches = [group.x[0] for group in self.groups]
        return self._scale(key, batches, bits, signed=True)

    @torch.no_grad()
    def frame_effect(self, precision: Precision) -> Effect:
        """Effect of quantizing every frame on its own."""
        bits, sums = precision.pool[-1], _Sums(self.length)
        for group in self.groups:
            z = self.apply(self.quantized_keyframe(torch.cat(group.x), bits), self.weight(precision.weight))
            for t, part in enumerate(z.chunk(len(group.x))):
                sums.add(t, part - group.z[t], group)
        return Effect(sums.errors(), (float(bits),) * self.length)

    @torch.no_grad()
    def effects(
        self, keyframe: Precision, activation: Precision, threshold: float | None, weights: Iterable[int]
    ) -> dict[int, Effect]:
        """Effects of residual frames of one pool with weights of several bit widths.

        Args:
            keyframe: precision of keyframes.
            activation: whose pool residuals have.
            threshold: τ of a dynamic pool.
            weights: bit widths of residual weights.
        """
        kept = {bits: _Sums(self.length) for bits in weights}
        shares = _Sums(self.length)
        for group in self.groups:
            x_hat = self.quantized_keyframe(group.x[0], keyframe.pool[-1])
            z_hat = self.apply(x_hat, self.weight(keyframe.weight))
            deltas, counts = self._deltas(group, x_hat, keyframe.pool[-1], activation.pool, threshold)
            for t, (mean, count) in enumerate(counts, start=1):
                shares.add_value(t, mean, count)
            times = distances(len(group.x))
            looked_at = [deltas[t - 1] for t in times]
            for bits, sums in kept.items():
                sums.add(0, z_hat - group.z[0], group)
                if looked_at:
                    moved = self.apply(torch.cat(looked_at), self.weight(bits)).chunk(len(looked_at))
                    for t, part in zip(times, moved, strict=True):
                        sums.add(t, z_hat + part - group.z[t], group)
        bits_by_t = (float(keyframe.pool[-1]), *shares.means()[1:])
        return {bits: Effect(_filled(sums.errors()), bits_by_t) for bits, sums in kept.items()}

    def _deltas(
        self, group: _Group, x_hat: Tensor, keyframe_bits: int, pool: tuple[int, ...], threshold: float | None
    ) -> tuple[list[Tensor], list[tuple[float, float]]]:
        """What is added to the keyframe's input at t = 1, ..., and the mean bits with the number of pixels."""
        reference = self.scheme.reference
        start = group.x[0] if reference == "float" else x_hat
        scales = [self.residual_scale(bits, keyframe_bits) for bits in pool]
        tau = None if threshold is None else self.norm.to(start) * threshold
        widths = torch.tensor(pool, dtype=torch.float64, device=start.device)
        deltas: list[Tensor] = []
        counts: list[tuple[float, float]] = []
        known = start
        for x in group.x[1:]:
            delta, choice = quantize_difference(x, known, scales, pool, tau, self.policy, self.layer.channel_dim)
            if reference == "running":
                known = known + delta
                delta = known - start
            deltas.append(delta)
            mean = float(pool[-1]) if choice is None else _mean(widths[choice.long()], group.inside)
            counts.append((mean, float(group.inside.sum())))
        return deltas, counts


def distances(length: int) -> list[int]:
    """Distances from the keyframe at which errors are measured; those between lie on a line.

    >>> distances(4), distances(16)
    ([1, 2, 3], [1, 2, 3, 5, 8, 11, 15])
    """
    found = [t for t in (1, 2, 3, 5, 8, 11) if t < length - 1]
    t = 15
    while t < length - 1:
        found.append(t)
        t = round(1.4 * t)
    return [*found, length - 1] if length > 1 else []


def _filled(errors: Sequence[float]) -> tuple[float, ...]:
    """Errors at every distance."""
    known = [0, *distances(len(errors))]
    found = [errors[0]]
    for low, high in itertools.pairwise(known):
        found += [
            errors[low] + (errors[high] - errors[low]) * (t - low) / (high - low) for t in range(low + 1, high + 1)
        ]
    return tuple(found)


def _mean(values: Tensor, inside: Tensor) -> float:
    return float((values * inside).sum() / inside.sum().clamp_min(1))


def _alike(views: Sequence[View]) -> list[list[View]]:
    groups: dict[tuple[object, ...], list[View]] = {}
    for view in views:
        groups.setdefault((view.inputs[0].shape[1:], len(view.inputs)), []).append(view)
    return list(groups.values())


class _Sums:
    """Sums by distance."""

    def __init__(self, length: int) -> None:
        self.values = [0.0] * length
        self.counts = [0.0] * length

    def add(self, t: int, error: Tensor, group: _Group) -> None:
        """Add the effect of an error (n, C, h, w) at t."""
        total = 0.0
        for gradient in group.gradients[t]:
            if gradient.dim() == error.dim():
                products = (gradient * error).flatten(1).sum(1, dtype=torch.float64).square()
                total += float((products * group.weight).sum())
            else:  # root mean squares, one per view
                each = len(error) // len(gradient)
                squares = error.flatten(1).square().sum(1, dtype=torch.float64)
                total += float((squares * gradient.repeat_interleave(each).square() * group.weight).sum())
        self.values[t] += 0.5 * total / len(group.gradients[t])

    def add_value(self, t: int, value: float, count: float) -> None:
        """Add to a weighted mean."""
        self.values[t] += value * count
        self.counts[t] += count

    def errors(self) -> tuple[float, ...]:
        return tuple(self.values)

    def means(self) -> list[float]:
        return [value / count if count else 0.0 for value, count in zip(self.values, self.counts, strict=True)]
