"""The executor that compares: it runs layers in float and lets full maps decide between a few ranges."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resq_plugin.calibration.collect import Key, difference
from resq_plugin.calibration.collection import Collected
from resq_plugin.calibration.layer_samples import LayerSamples, Losses, best
from resq_plugin.calibration.line_search import LayerSearch
from resq_plugin.calibration.ranges import output_loss
from resq_plugin.calibration.recording import replay
from resq_plugin.config import ResQConfig
from resq_plugin.method import Call, CountingExecutor, ResidualLayer, executing, fake_quantize, scale_from_range

__all__ = ["FullMapComparison", "compare_on_full_maps"]


class FullMapComparison(CountingExecutor):
    """Executor that runs layers in float and adds the loss of Eq. 8 on full maps to that of a few ranges.

    Args:
        config: the configuration.
        ranked: per layer and quantizer, half ranges and their losses on the sample, best first.
        samples: the samples of every layer.

    Attributes:
        finalists: the half ranges with the losses on the frames so far added.
        lost: what every quantizer's half ranges lose on the frame that runs.
    """

    def __init__(
        self,
        config: ResQConfig,
        ranked: Mapping[str, Mapping[str, Mapping[float, float]]],
        samples: Mapping[str, LayerSamples],
    ) -> None:
        super().__init__()
        self.config = config
        self.finalists = {name: {key: dict(losses) for key, losses in item.items()} for name, item in ranked.items()}
        self.samples = samples
        self.lost: dict[tuple[str, str], Losses] = {}
        self._keyframes = {name: best(item["keyframe"]) for name, item in self.finalists.items()}
        self._references: dict[Key, Tensor] = {}
        self._position = 0

    def start_frame(self, position: int) -> None:
        """Begin the keyframe (0) or the residual frame (1) of a pair."""
        self._position = position
        self.calls.clear()
        self.lost = {}
        if position == 0:
            self._references.clear()

    def end_frame(self) -> None:
        """Add what was lost on the frame."""
        for (name, quantizer), losses in self.lost.items():
            for half_range, loss in losses.items():
                self.finalists[name][quantizer][half_range] += loss

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer in float."""
        name = layer.settings.name
        if name not in self.finalists:
            return layer.dense(x, **options)
        key = (*call, x.shape)
        residuals = [quantizer for quantizer in self.finalists[name] if quantizer != "keyframe"]
        self._compare(layer, "keyframe", x, options, signed=self.samples[name].is_signed(self.config))
        if self._position == 0:
            self._references[key] = self._reference(layer, x)
        elif residuals:
            delta = difference(x, self._references, key)
            for quantizer in residuals:
                self._compare(layer, quantizer, delta, options, signed=True)
        return layer.dense(x, **options)

    def _reference(self, layer: ResidualLayer, x: Tensor) -> Tensor:
        if self.config.reference == "float":
            return x.clone()
        name = layer.settings.name
        signed, bits = self.samples[name].is_signed(self.config), layer.activation_quantizers()["keyframe"].bits
        half = torch.tensor(self._keyframes[name], dtype=torch.float64)
        scale = scale_from_range(-half, half, bits, signed=signed).to(x.device)
        return fake_quantize(x, scale, bits, signed=signed)

    def _compare(
        self, layer: ResidualLayer, quantizer: str, x: Tensor, options: dict[str, Any], *, signed: bool
    ) -> None:
        name, bits = layer.settings.name, layer.activation_quantizers()[quantizer].bits
        half_ranges = self.finalists[name][quantizer]
        if len(half_ranges) < 2:
            return
        lost = self.lost.setdefault((name, quantizer), dict.fromkeys(half_ranges, 0.0))
        weight = layer.weight_of("keyframe" if quantizer == "keyframe" else "residual")

        def apply(x: Tensor, weight: Tensor) -> Tensor:
            return layer.linear(x, weight, None, **options)

        target = apply(x, layer.weight_of("float"))
        for half_range in half_ranges:
            lost[half_range] += output_loss(x, target, weight, half_range, bits, signed, apply)


def compare_on_full_maps(
    model: nn.Module,
    config: ResQConfig,
    searches: Mapping[str, LayerSearch],
    found: Collected,
    *,
    progress: bool = False,
) -> dict[str, dict[str, Losses]]:
    """Return the finalists of every quantizer with their losses on full maps added, as far as there are several.

    Args:
        model: a converted model in evaluation mode, whose recorded frames are run again.
        config: of the model.
        searches: what was found for every layer.
        found: what was collected; what is compared now is added.
        progress: show a progress bar.

    Raises:
        CalibrationError: a layer reads something else than before.
    """
    known = found.rechecked
    ranked = {name: dict(search.ranked) for name, search in searches.items()}
    new: dict[tuple[str, str], Hashable] = {}
    for name, search in searches.items():
        for quantizer, losses in search.ranked.items():
            if len(losses) > 1 and search.depends[quantizer] in known:
                ranked[name][quantizer] = {best(losses): 0.0}  # nothing to compare
            elif len(losses) > 1:
                new[name, quantizer] = search.depends[quantizer]
    if new:
        comparison = FullMapComparison(config, ranked, found.samples)
        keyframes = {place: key for place, key in new.items() if place[1] == "keyframe"}
        for pair in tqdm(found.pairs, "comparing on full maps", disable=not progress):
            with executing(comparison):
                for position, recorded in enumerate(pair):
                    comparison.start_frame(position)
                    if len(keyframes) == len(new) and all(key in recorded.losses for key in keyframes.values()):
                        comparison.lost = {place: recorded.losses[key] for place, key in keyframes.items()}
                    else:
                        replay(model, recorded)
                        recorded.losses |= {key: comparison.lost.get(place, {}) for place, key in keyframes.items()}
                    comparison.end_frame()
        for (name, quantizer), key in new.items():
            known[key] = comparison.finalists[name][quantizer]
    return {
        name: {
            quantizer: known.get(search.depends.get(quantizer), losses) for quantizer, losses in search.ranked.items()
        }
        for name, search in searches.items()
    }
