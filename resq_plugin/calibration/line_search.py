"""The search of Eq. 8 for every quantizer of one layer, on the windows that were collected of its inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from resq_plugin.calibration.fingerprint import fingerprint
from resq_plugin.calibration.layer_samples import LayerSamples, Losses, best, widen
from resq_plugin.calibration.ranges import candidate_ranges, output_loss, search_range
from resq_plugin.calibration.sampling import apply_to_windows
from resq_plugin.config import ResQConfig
from resq_plugin.method import ResidualLayer, fake_quantize, scale_from_range

__all__ = ["FINALISTS", "LayerSearch", "PathSearch", "search_layer", "search_path"]

Depends = tuple[Hashable, ...]

FINALISTS = 3
"""Candidates of the sampled search that are compared on full maps."""
FEW = 8
"""Bits up to which clipping may pay; with more, whatever no window shows is worth more than finer steps."""


@dataclass(frozen=True)
class PathSearch:
    """What the quantizers of one path of a layer are searched on.

    Attributes:
        batches: X, windows of layer inputs.
        targets: ``X * w`` of each.
        bounds: minimum and maximum of X.
        signed: the grid.
        candidates: r.
        apply: the operation.
    """

    batches: Sequence[Tensor]
    targets: Sequence[Tensor]
    bounds: tuple[float, float]
    signed: bool
    candidates: int
    apply: Callable[[Tensor, Tensor], Tensor]

    @property
    def energy(self) -> float:
        """``‖X * w‖²``, what 0 bits lose."""
        return sum(float(target.double().square().sum()) for target in self.targets)

    def rank(self, w_hat: Tensor, bits: int) -> dict[float, float]:
        """Squared losses of half ranges for the quantized weight ``w_hat`` and ``bits`` of activations, best first."""

        def loss(half_range: float) -> float:
            return sum(
                output_loss(x, target, w_hat, half_range, bits, self.signed, self.apply)
                for x, target in zip(self.batches, self.targets, strict=True)
            )

        return search_range(candidate_ranges(*self.bounds, self.candidates), loss)

    def unranked(self) -> dict[float, float]:
        """All half ranges, wide to narrow, for full maps to decide between."""
        return dict.fromkeys(candidate_ranges(*self.bounds, self.candidates), 0.0)


@dataclass(frozen=True)
class LayerSearch:
    """What the search found for one layer.

    Attributes:
        ranked: per quantizer the finalists, half ranges and their squared losses, best first.
        energies: per path (``keyframe``, ``residual``) what 0 bits lose.
        depends: per quantizer, what its losses depend on, beside the samples.
        is_still: whether the inputs of the layer never changed, so that the residual range is that of its inputs.
    """

    ranked: dict[str, dict[float, float]]
    energies: dict[str, float]
    depends: Mapping[str, Hashable]
    is_still: bool = False

    def __add__(self, other: LayerSearch) -> LayerSearch:
        """Of both paths."""
        ranked, energies = self.ranked | other.ranked, self.energies | other.energies
        return LayerSearch(ranked, energies, {**self.depends, **other.depends})


def search_path(
    layer: ResidualLayer, samples: LayerSamples, kind: str, keyframe_range: float | None = None, *, every: int = 1
) -> PathSearch:
    """What one path of a layer is searched on.

    Args:
        layer: the layer.
        samples: what was collected of its inputs.
        kind: ``keyframe`` or ``residual``.
        keyframe_range: half range of Φ_a, which residuals may depend on.
        every: take every n-th window only.
    """
    config: ResQConfig = layer.settings.config
    weight, signed = layer.weight_of("float"), samples.is_signed(config)
    if kind == "keyframe":
        batches, bounds = samples.keyframe_inputs(), samples.keyframe_range
    else:
        half = torch.tensor(keyframe_range, dtype=torch.float64)
        bits = layer.activation_quantizers()["keyframe"].bits
        scale = scale_from_range(-half, half, bits, signed=signed).to(weight.device)
        batches = samples.residual_inputs(config.reference, lambda x: fake_quantize(x, scale, bits, signed=signed))
        bounds = samples.residual_range or (0.0, 0.0)
        for batch in batches:
            bounds = widen(bounds, batch, layer.settings.name)
        signed = True
    apply = partial(apply_to_windows, layer)
    batches = [x[::every] for x in batches]
    targets = [apply(x, weight) for x in batches]
    return PathSearch(batches, targets, bounds, signed, config.calibration.candidates, apply)


def search_layer(
    layer: ResidualLayer, samples: LayerSamples, known: dict[Hashable, Losses] | None = None
) -> LayerSearch:
    """Find the best half ranges of every quantizer of a layer on the sampled windows.

    Args:
        layer: the layer.
        samples: what was collected of its inputs.
        known: what was found before on these samples, by what it depends on; what is new is added.
    """
    known = {} if known is None else known
    config, quantizers = layer.settings.config, layer.activation_quantizers()
    pool = {name: quantizer.bits for name, quantizer in quantizers.items() if name != "keyframe"}
    keyframe = quantizers["keyframe"].bits, samples.is_signed(config)
    path = partial(search_path, layer, samples, "keyframe")
    depends: Depends = (layer.settings.name, config.calibration.candidates, keyframe[1])
    found = _search(layer, samples, "keyframe", {"keyframe": keyframe[0]}, path, depends, known)
    has_residuals = layer.settings.residual is not None and samples.residual_range is not None
    is_still = has_residuals and samples.is_still
    if is_still:
        half = samples.widest_change
        found += LayerSearch({name: {half if bits else 0.0: 0.0} for name, bits in pool.items()}, {}, {})
    elif has_residuals:
        half = best(found.ranked["keyframe"])
        path = partial(search_path, layer, samples, "residual", half)
        depends = (layer.settings.name, config.calibration.candidates, config.reference)
        depends += () if config.reference == "float" else (*keyframe, half)
        found += _search(layer, samples, "residual", pool, path, depends, known)
    return replace(found, is_still=is_still)


def _search(
    layer: ResidualLayer,
    samples: LayerSamples,
    kind: str,
    quantizers: Mapping[str, int],
    make_path: Callable[[], PathSearch],
    depends: Depends,
    known: dict[Hashable, Losses],
) -> LayerSearch:
    """Find the finalists of the quantizers of one path, given by their bits, as far as they are not known."""
    config = layer.settings.config
    trusted = not config.calibration.recheck or samples.is_typical(kind, config.reference)
    # Where the windows are the whole maps, a comparison on some of the frames knows less.
    count = 1 if samples.is_complete else FINALISTS if trusted else config.calibration.candidates
    w_hat = layer.weight_of(kind)
    of_path = (kind, *depends)
    keys = {name: (*of_path, fingerprint([("", w_hat)]), bits) for name, bits in quantizers.items()}
    if any(key not in known for key in (of_path, *keys.values())):
        path = make_path()
        known.setdefault(of_path, {0.0: path.energy})
        for name, bits in quantizers.items():
            if keys[name] not in known:
                find = partial(path.rank, w_hat, bits) if trusted else path.unranked
                known[keys[name]] = find() if bits else {0.0: 0.0}
    finalists = {name: dict(itertools.islice(known[key].items(), count)) for name, key in keys.items()}
    for name, bits in quantizers.items():
        if bits > FEW and not samples.is_complete:
            widest = max(known[keys[name]])
            finalists[name].setdefault(widest, known[keys[name]][widest])
    return LayerSearch(finalists, {kind: known[of_path][0.0]}, keys)
