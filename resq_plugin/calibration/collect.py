"""The executor that collects: it runs layers in float and samples what they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from resq_plugin.calibration.layer_samples import LayerSamples, square_sum, widen
from resq_plugin.calibration.sampling import Window, choose_windows, cut_windows, inside, output_positions
from resq_plugin.config import ResQConfig
from resq_plugin.errors import CalibrationError
from resq_plugin.method import Call, CountingExecutor, ResidualLayer

__all__ = ["Collector", "Key", "difference"]

Key = tuple[str, int, torch.Size]
"""One call of one layer in a frame: layer name, number of the call, shape of the input."""


class Collector(CountingExecutor):
    """Executor that runs layers in float and samples their inputs.

    Args:
        layers: the layers by name.
        config: the configuration.
        expected: how many samples of each kind there will be, among which output positions are shared out.
    """

    def __init__(self, layers: Mapping[str, ResidualLayer], config: ResQConfig, expected: int | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.config = config
        self.positions = max(1, round(config.calibration.positions / (expected or config.calibration.samples)))
        self.samples: dict[str, LayerSamples] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.frames = {"keyframe": 0, "residual": 0}
        self.passed_over = 0
        self._windows: dict[Key, list[Window]] = {}
        self._references: dict[Key, Tensor] = {}
        self._slots: dict[Key, int] = {}
        self._position = 0
        self._roles: set[str] = set()

    def start_frame(self, position: int) -> None:
        """Begin frame t of the clip."""
        self._position = position
        self.calls.clear()
        limit = self.config.calibration.samples
        roles = {"keyframe"} if position == 0 or self.config.residual is None else {"keyframe", "residual"}
        self._roles = {role for role in roles if self.frames[role] < limit}
        for role in self._roles:
            self.frames[role] += 1

    def pass_over_frame(self) -> None:
        """Do not count this frame, because it called no layer."""
        self.passed_over += 1
        for role in self._roles:
            self.frames[role] -= 1

    def end_clip(self) -> None:
        """Forget what belongs to one clip only."""
        self._windows.clear()
        self._references.clear()
        self._slots.clear()

    @property
    def wanted(self) -> int:
        """How many frames of the next clip to look at; 0 when enough samples of each kind were seen."""
        keyframes, residuals = self.missing_keyframes, self.config.calibration.samples - self.frames["residual"]
        return keyframes if self.config.residual is None or residuals <= 0 else max(keyframes, residuals + 1)

    @property
    def missing_keyframes(self) -> int:
        """How many more frames frame quantization would look at."""
        return max(self.config.calibration.samples - self.frames["keyframe"], 0)

    def finish(self) -> None:
        """Drop layers without a keyframe sample, and raise unless some layer was reached."""
        self.samples = {name: samples for name, samples in self.samples.items() if any(samples.keyframes)}
        if not self.samples:
            msg = "no ResQ layer was reached by the calibration frames; does model(frame) run the converted network?"
            raise CalibrationError(msg)

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer in float."""
        name, key = layer.settings.name, (*call, x.shape)
        z = layer.dense(x, **options)
        _require_batch(layer, x)
        samples = self.samples.setdefault(name, LayerSamples())
        if key not in self._slots:
            self._windows[key] = choose_windows(layer, x, self.positions, self.generator)
            self._slots[key] = len(samples.clips)
            samples.complete.append(self.positions >= output_positions(layer, x))
            samples.inside.append(int(inside(layer, x, self._windows[key]).sum()))
            samples.clips.append({})
            samples.keyframes.append([])
            samples.residuals.append([])
        slot = self._slots[key]
        samples.clips[slot][self._position] = cut_windows(layer, x, self._windows[key])
        if "keyframe" in self._roles:
            samples.keyframes[slot].append(self._position)
            samples.keyframe_range = widen(samples.keyframe_range, x, name)
            samples.square_sum += square_sum(x)
            samples.pixels += x.numel() // max(x.shape[layer.channel_dim], 1)
        if self._position == 0:
            self._references[key] = x.clone()
        elif "residual" in self._roles:
            samples.residuals[slot].append(self._position)
            low = samples.residual_range or (float("inf"), -float("inf"))
            change = difference(x, self._references, key)
            samples.residual_range = widen(low, change, name)
            samples.change_square_sum += square_sum(change)
            samples.change_pixels += x.numel() // max(x.shape[layer.channel_dim], 1)
        if self.config.reference == "running" and key in self._references:
            self._references[key] = x.clone()
        return z


def _require_batch(layer: ResidualLayer, x: Tensor) -> None:
    expected = layer.weight_of("float").dim() if layer.channel_dim == 1 else 2
    if x.dim() < expected:
        msg = (
            f"layer {layer.settings.name} got an input {tuple(x.shape)} without a batch dimension; "
            "the frames of a clip are (N, C, H, W)."
        )
        raise CalibrationError(msg)


def difference(x: Tensor, references: Mapping[Key, Tensor], key: Key) -> Tensor:
    """Residual of ``x`` to the same call in the first frame of the clip, or in the last one that had it."""
    if key not in references:
        name, call, shape = key
        msg = (
            f"call {call} of layer {name} has the input {tuple(shape)}, and none like it in the first frame of the "
            f"clip. Residuals need the same calls in every frame; exclude=({name!r},) keeps this layer in float."
        )
        raise CalibrationError(msg)
    return x - references[key]
