"""Layers whose output error is far above what their bit widths can give, and the setting that brings it down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from resq_plugin.backends import TorchResidualLayer
from resq_plugin.calibration.layer_samples import LayerSamples, best
from resq_plugin.calibration.line_search import LayerSearch, PathSearch, search_path
from resq_plugin.config import MAX_BITS, Precision
from resq_plugin.method import ResidualLayer, fake_quantize_weight, weight_scale

__all__ = ["Need", "describe_needs", "error_limit", "find_needs", "usual_error", "weight_at"]

FACTOR = 4
"""How far above the usual error a layer falls out. Of DDRNet's 110 quantizers none is above 1.9 times of it, while
8-bit layers with one weight scale for channels of very different ranges (MobileNet) reach 60 times."""

SMALLEST = 0.05
"""A layer with a smaller error does no harm, however many bits it has."""

LARGEST = 0.9
"""A layer with a larger error lets nothing through, whatever the bit widths."""

SAMPLED = 4
"""Alternatives are measured on every fourth window."""

SHOWN = 5
"""Layers that a message names one by one."""

CHANNEL = "weights='channel'"
EXCLUDE = "exclude"


@dataclass(frozen=True)
class Need:
    """One path of a layer that falls out.

    Attributes:
        layer: its name.
        path: ``keyframe`` or ``residual``.
        precision: what it has.
        error: ``‖X * w - q(X) * ŵ‖ / ‖X * w‖`` of Eq. 8 on the calibration samples.
        alternatives: the same error with one setting changed, in the order in which they are to be preferred:
            ``weights='channel'``, or another precision.
    """

    layer: str
    path: str
    precision: Precision
    error: float
    alternatives: Mapping[str, float]

    @property
    def remedy(self) -> str:
        """The first alternative that brings the error to what the present bits can give, else ``exclude``."""
        limit = error_limit(self.precision.weight, self.precision.pool[-1])
        return next((setting for setting, error in self.alternatives.items() if error <= limit), EXCLUDE)


def usual_error(weight: int, activation: int) -> float:
    """Relative output error of a layer with those bit widths, where ranges are shared by values of one distribution.

    The step is 2^-b of twice the range, which is about 4 standard deviations: ``8 / (√12 · 2^b)`` for each factor.

    >>> round(usual_error(8, 8), 4), round(usual_error(4, 4), 2)
    (0.0128, 0.2)
    """
    return 8 / math.sqrt(12) * math.hypot(2.0**-weight, 2.0**-activation)


def error_limit(weight: int, activation: int) -> float:
    """Error above which a layer falls out."""
    return min(max(FACTOR * usual_error(weight, activation), SMALLEST), LARGEST)


def find_needs(layer: ResidualLayer, samples: LayerSamples, search: LayerSearch) -> list[Need]:
    """Compare the errors that the search has found with the limit; alternatives are measured where it is exceeded."""
    needs = []
    for path, energy in search.energies.items():
        precision = getattr(layer.settings, path)
        bits = precision.pool[-1]
        losses = [losses for name, losses in search.ranked.items() if name.split(".")[0] == path][-1]
        error = math.sqrt(min(losses.values()) / energy) if energy else 0.0
        if bits and error > error_limit(precision.weight, bits):
            searched = search_path(layer, samples, path, best(search.ranked["keyframe"]), every=SAMPLED)
            alternatives = dict(_alternatives(layer, precision, searched))
            needs.append(Need(layer.settings.name, path, precision, error, alternatives))
    return needs


def _alternatives(layer: ResidualLayer, precision: Precision, path: PathSearch) -> Iterator[tuple[str, float]]:
    if not isinstance(layer, TorchResidualLayer):
        return
    per_channel = layer.settings.config.weights == "channel"
    wide, more = min(2 * precision.weight, MAX_BITS), min(2 * precision.pool[-1], MAX_BITS)

    def error(weight_bits: int, bits: int, *, channel: bool) -> float:
        w_hat = weight_at(layer, weight_bits, channel=channel)
        return math.sqrt(min(path.rank(w_hat, bits).values()) / path.energy)

    if not per_channel:
        yield CHANNEL, error(precision.weight, precision.pool[-1], channel=True)
    for weight_bits, bits in ((wide, precision.pool[-1]), (precision.weight, more), (wide, more)):
        changed = replace(precision, weight=weight_bits, activation=_with_top(precision, bits))
        if changed != precision:
            found = error(weight_bits, bits, channel=per_channel)
            yield str(changed), found
            if found <= error_limit(precision.weight, precision.pool[-1]):
                return


def _with_top(precision: Precision, bits: int) -> int | tuple[int, ...]:
    return (*precision.pool[:-1], bits) if precision.is_dynamic else bits


def weight_at(layer: TorchResidualLayer, bits: int, *, channel: bool) -> Tensor:
    """The layer's weight (batch norm folded) quantized by Eq. 1, 6 and 7 to any bit width."""
    view = layer.grouped(layer.weight_of("float").detach())
    scale = weight_scale(view, bits, layer.weight_channel_dims if channel else ())
    return fake_quantize_weight(view, scale, bits).view_as(layer.weight)


def _parsed(setting: str) -> Precision:
    weight, _, activation = setting.removeprefix("W").partition("A")
    pool = tuple(int(bits) for bits in activation.strip("{}").split(","))
    return Precision(int(weight), pool if len(pool) > 1 else pool[0])


def describe_needs(needs: Sequence[Need], layers: Mapping[str, ResidualLayer]) -> str:
    """Name the layers, worst first, what was measured, and the settings to write."""
    ordered = sorted(needs, key=lambda need: need.error / error_limit(need.precision.weight, need.precision.pool[-1]))
    shown = [_describe(need) for need in ordered[::-1][:SHOWN]]
    if len(needs) > SHOWN:
        shown.append(f"{len(needs) - SHOWN} more")
    return (
        "output errors far above what the bit widths can give, measured on the calibration frames: "
        f"{'; '.join(shown)}. Write {_settings(needs, layers)}, and calibrate again."
    )


def _describe(need: Need) -> str:
    usual = usual_error(need.precision.weight, need.precision.pool[-1])
    tried = ", ".join(f"{error:.1%} with {setting}" for setting, error in need.alternatives.items())
    found = f"layer {need.layer} ({need.path}, {need.precision}) {need.error:.1%} where {usual:.1%} is usual"
    return f"{found} ({tried})" if tried else found


def _settings(needs: Sequence[Need], layers: Mapping[str, ResidualLayer]) -> str:
    """Settings of `ResQConfig` that help all of them."""
    remedies = {need.remedy for need in needs}
    lines = [CHANNEL] if CHANNEL in remedies else []
    excluded = sorted({need.layer for need in needs if need.remedy == EXCLUDE})
    overrides: dict[str, str] = {}
    for name in dict.fromkeys(need.layer for need in needs if need.remedy not in (CHANNEL, EXCLUDE)):
        if name not in excluded:
            sides = {"keyframe": layers[name].settings.keyframe, "residual": layers[name].settings.residual}
            changed = {n.path: _parsed(n.remedy) for n in needs if n.layer == name and n.remedy != CHANNEL}
            overrides[name] = "->".join(str(side) for side in (sides | changed).values() if side is not None)
    if overrides:
        lines.append(f"overrides={overrides!r}")
    if excluded:
        lines.append(f"exclude={tuple(excluded)!r}")
    return ", ".join(lines)
