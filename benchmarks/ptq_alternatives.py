"""Ways to find ranges that are not part of the library, because they did not pay; ptq.py measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.backends import TorchResidualLayer
from resq_plugin.calibration import Collector, PathSearch, apply_to_windows, candidate_ranges
from resq_plugin.method import dense_execution, executing, fake_quantize, residual_layers, scale_from_range

Clips = list[list[Tensor]]
Read = Callable[[TorchResidualLayer, list[Tensor], tuple[float, float]], float]
CANDIDATES = 20
BINS = 2048


_samples: dict[int, Any] = {}


@torch.no_grad()
def collected(model: nn.Module, clips: Clips) -> Any:
    """Windows of what layers read in float; those of the same clips are collected once."""
    layers = residual_layers(model)
    if id(clips) not in _samples:
        collector = Collector(layers, next(iter(layers.values())).settings.config)
        with executing(collector):
            for clip in clips:
                for position, frame in enumerate(clip[: collector.wanted]):
                    collector.start_frame(position)
                    model(frame)
                collector.end_clip()
        _samples.clear()
        _samples[id(clips)] = collector.samples
    return _samples[id(clips)]


def layers_with_windows(model: nn.Module, clips: Clips) -> Iterator[tuple[TorchResidualLayer, Any]]:
    """Layers and their samples."""
    layers = residual_layers(model)
    for name, samples in collected(model, clips).items():
        layer = layers[name]
        if isinstance(layer, TorchResidualLayer):
            yield layer, samples


@torch.no_grad()
def mean_error(model: nn.Module, clips: Clips) -> float:
    """Mean over layers of ``‖X * w - q(X) * ŵ‖ / ‖X * w‖`` with float inputs, biases left out."""
    errors = []
    for layer, samples in layers_with_windows(model, clips):
        error = energy = 0.0
        for x in (windows[::4] for windows in samples.keyframe_inputs()):
            exact = apply_to_windows(layer, x, layer.weight_of("float"))
            found = apply_to_windows(layer, layer.quantize_keyframe(x), layer.weight_of("keyframe"))
            error, energy = error + float((found - exact).square().sum()), energy + float(exact.square().sum())
        errors.append(math.sqrt(error / max(energy, 1e-30)))
    return round(sum(errors) / len(errors), 4)


def _with_ranges(find: Read) -> Callable[[nn.Module, Clips], None]:
    @torch.no_grad()
    def change(model: nn.Module, clips: Clips) -> None:
        for layer, samples in layers_with_windows(model, clips):
            half = find(layer, samples.keyframe_inputs(), samples.keyframe_range)
            layer.keyframe_quantizer.set_range(-half, half, signed=layer.keyframe_quantizer.signed)

    return change


def _quantized(layer: TorchResidualLayer, x: Tensor, half: float) -> Tensor:
    quantizer, end = layer.keyframe_quantizer, torch.tensor(half, dtype=torch.float64)
    scale = scale_from_range(-end, end, quantizer.bits, signed=quantizer.signed)
    return fake_quantize(x, scale, quantizer.bits, signed=quantizer.signed)


def percentile(share: float) -> Read:
    """The range that holds a share of the magnitudes."""

    def find(_: TorchResidualLayer, batches: list[Tensor], bounds: tuple[float, float]) -> float:
        values = torch.cat([x.flatten() for x in batches]).abs()
        found = float(values.kthvalue(max(1, round(share * values.numel()))).values)
        return found or candidate_ranges(*bounds, CANDIDATES)[0]

    return find


def mse(layer: TorchResidualLayer, batches: list[Tensor], bounds: tuple[float, float]) -> float:
    """The range of the least error of the inputs themselves."""
    return min(
        candidate_ranges(*bounds, CANDIDATES),
        key=lambda half: sum(float((_quantized(layer, x, half) - x).square().sum()) for x in batches),
    )


def kl(layer: TorchResidualLayer, batches: list[Tensor], bounds: tuple[float, float]) -> float:
    """The range of the least divergence between the histograms of magnitudes before and behind quantization."""
    values = torch.cat([x.flatten() for x in batches]).abs()
    top = float(values.max())
    counts = torch.histc(values, BINS, 0.0, top)
    counts[0] = 0  # what a ReLU cut off
    middles = (torch.arange(BINS) + 0.5) * top / BINS

    def divergence(half: float) -> float:
        inside = middles <= half
        p = torch.where(inside, counts, 0.0)
        p[inside.nonzero()[-1]] += counts[~inside].sum()
        levels = _quantized(layer, middles, half).unique(return_inverse=True)[1]
        used = (inside & (counts > 0)).float()
        mass = torch.zeros(int(levels.max()) + 1).index_add_(0, levels, torch.where(inside, counts, 0.0))
        size = torch.zeros_like(mass).index_add_(0, levels, used)
        q = (mass / size.clamp_min(1))[levels] * used
        p, q = p / p.sum(), q / q.sum()
        found = p > 0
        return float((p[found] * (p[found] / q[found].clamp_min(1e-9)).log()).sum())

    return min(candidate_ranges(*bounds, CANDIDATES), key=divergence)


@torch.no_grad()
def joint(model: nn.Module, clips: Clips) -> None:
    """Per output channel the factor on the weight range, and then the activation range, of the least output error."""
    for layer, samples in layers_with_windows(model, clips):
        layer.learn_weight_scales()
        scale, batches = layer.keyframe_weight_scale, samples.keyframe_inputs()
        first, weight = scale.detach().clone(), layer.weight_of("float")
        targets = [apply_to_windows(layer, x, weight) for x in batches]
        inputs = [layer.quantize_keyframe(x)[::4] for x in batches]
        best, factors = torch.full_like(first, math.inf), torch.ones_like(first)
        for factor in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5):
            scale.copy_(first * factor)
            w_hat = layer.weight_of("keyframe")
            error = sum(
                (apply_to_windows(layer, x, w_hat) - z[::4]).square().sum((0, 2, 3))
                for x, z in zip(inputs, targets, strict=True)
            )
            error = error.view_as(first)
            best, factors = torch.minimum(best, error), torch.where(error < best, factor, factors)
        scale.copy_(first * factors)
        signed, bits = layer.keyframe_quantizer.signed, layer.keyframe_quantizer.bits
        path = PathSearch(
            *(batches, targets, samples.keyframe_range, signed, CANDIDATES),
            lambda x, w, layer=layer: apply_to_windows(layer, x, w),
        )
        half = next(iter(path.rank(layer.weight_of("keyframe"), bits)))
        layer.keyframe_quantizer.set_range(-half, half, signed=signed)


ALTERNATIVES: dict[str, Callable[[nn.Module, Clips], None]] = {
    "ranges by MSE of inputs": _with_ranges(mse),
    "99.9th percentile": _with_ranges(percentile(0.999)),
    "99.99th percentile": _with_ranges(percentile(0.9999)),
    "ranges by KL": _with_ranges(kl),
    "joint weight and activation ranges": joint,
}


@torch.no_grad()
def distance_gain(model: nn.Module, clips: Clips) -> dict[str, float]:
    """Mean residual error of layers (W4A4) with one range for all distances, and with one of their own for each."""
    one, own = [], []
    layers = residual_layers(model)
    with dense_execution():
        model(clips[0][0])
    for name, samples in collected(model, clips).items():
        layer = layers[name]
        weight, w_hat = layer.weight_of("float"), layer.weight_of("residual")

        def apply(x: Tensor, w: Tensor, layer: Any = layer) -> Tensor:
            return apply_to_windows(layer, x, w)

        distances = range(1, max(len(clip) for clip in samples.clips))
        losses: dict[int, dict[float, float]] = {}
        energy = 0.0
        for t in distances:
            deltas = [torch.cat([clip[t] - clip[0] for clip in samples.clips if t in clip])[::2]]
            targets = [apply(x, weight) for x in deltas]
            energy += sum(float(z.square().sum()) for z in targets)

            def loss(half: float, deltas: Any = deltas, targets: Any = targets, w_hat: Tensor = w_hat) -> float:
                end = torch.tensor(half, dtype=torch.float64)
                scale = scale_from_range(-end, end, 4)
                found = (apply(fake_quantize(x, scale, 4), w_hat) for x in deltas)
                return sum(float((z_hat - z).square().sum()) for z_hat, z in zip(found, targets, strict=True))

            losses[t] = {half: loss(half) for half in candidate_ranges(*samples.residual_range, CANDIDATES)}
        joint_loss = min(sum(losses[t][half] for t in distances) for half in losses[1])
        one.append(math.sqrt(joint_loss / energy))
        own.append(math.sqrt(sum(min(losses[t].values()) for t in distances) / energy))
    return {"one_range": round(sum(one) / len(one), 4), "per_distance": round(sum(own) / len(own), 4)}
