"""What a user must know of a calibration: layers that saw nothing, or nothing change, and those with a large error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from resq_plugin.calibration.layer_samples import LayerSamples
from resq_plugin.calibration.line_search import LayerSearch
from resq_plugin.calibration.needs import describe_needs, find_needs
from resq_plugin.config import ResQConfig
from resq_plugin.method import ResidualLayer

__all__ = ["find_findings", "log_findings", "too_short"]

logger = logging.getLogger(__name__)

SHOWN = 8
"""Names or numbers that a message lists."""


def log_findings(findings: Sequence[str]) -> None:
    """Log all of them as one warning."""
    if findings:
        logger.warning("calibration found that %s", "\n- ".join(["", *findings]) if len(findings) > 1 else findings[0])


def find_findings(
    layers: Mapping[str, ResidualLayer],
    samples: Mapping[str, LayerSamples],
    searches: Mapping[str, LayerSearch],
    clips: Iterable[int],
) -> list[str]:
    """What is to be said of the layers that calibration reached.

    Args:
        layers: the layers by name.
        samples: what they read.
        searches: what was found for them.
        clips: numbers of the clips that were looked at.
    """
    found = [
        f"layer {name}: all weights are zero, so its output is its bias whatever the precision"
        for name in searches
        if not bool(layers[name].weight_of("float").any())
    ]
    silent = [name for name in searches if not samples[name].largest]
    if silent:
        found.append(
            f"layers {_list(silent)} read nothing but zeros, so they have no range, and whatever else they read later "
            f"counts as zero. Pass clips in which their input is not zero, or leave them out: exclude=({silent[0]!r},)"
        )
    still = [name for name, search in searches.items() if search.is_still and name not in silent]
    with_residuals = [
        name
        for name in searches
        if layers[name].settings.residual is not None and samples[name].residual_range is not None
    ]
    if still and len(still) + len(silent) >= len(with_residuals):
        found.append(
            f"no layer saw a change, because the frames of clips {_list(sorted(set(clips)))} repeat each other. "
            "Residual ranges cannot be found from them and are as wide as the keyframes' (safe, and coarse). Pass "
            "clips of frames that differ, e.g. without the doubled ones, clip[::2]"
        )
    elif still:
        found.append(
            f"layers {_list(still)} read the same in all frames of a clip, e.g. a second input that stood still. "
            "Their residual ranges are as wide as the keyframes' (safe, and coarse). Pass clips in which their input "
            f"changes, or leave them out: exclude=({still[0]!r},)"
        )
    for name, search in searches.items():
        dead = [] if search.is_still else _dead_members(layers[name], search)
        if dead:
            found.append(
                f"layer {name}: of its pool {layers[name].settings.residual}, {_list(dead)} bits are no better than 0 "
                "bits on the residuals of these clips. Take them out of the pool, or pass clips with more motion"
            )
    if not next(iter(layers.values())).settings.config.calibration.recheck:
        references = {name: layers[name].settings.config.reference for name in searches}
        rare = [
            name
            for name, reference in references.items()
            if not all(samples[name].is_typical(kind, reference) for kind in ("keyframe", "residual"))
        ]
        if rare:
            found.append(
                f"the places sampled of layers {_list(rare)} hold less than half or more than twice of what their "
                "inputs hold on average, so what is rare there, such as a small mask, may be clipped. Let full maps "
                "decide: calibration=dict(recheck=4), or sample more: calibration=dict(positions=65536)"
            )
    needs = [need for name, search in searches.items() for need in find_needs(layers[name], samples[name], search)]
    if needs:
        found.append(describe_needs(needs, layers))
    return found


def too_short(longest: int, config: ResQConfig) -> list[str]:
    """What is to be said of clips that show shorter distances than streams will have.

    Args:
        longest: frames of the longest interval that was looked at.
        config: T; with ``reference="running"`` residuals are always to the frame before, and with scene changes T is
            but the longest interval.
    """
    is_bounded = config.reference == "running" or config.schedule.kind != "interval"
    if config.residual is None or is_bounded or longest >= config.interval:
        return []
    return [
        f"the longest clip has {longest} frames, but T={config.interval}: residuals of frames farther than "
        f"{longest - 1} from their keyframe were not seen, and their ranges may be too narrow. Pass clips of "
        f"{config.interval} consecutive frames"
    ]


def _dead_members(layer: ResidualLayer, search: LayerSearch) -> list[int]:
    """Bit widths of a pool that lose as much as zeros."""
    energy = search.energies.get("residual", 0.0)
    pool = {n: q.bits for n, q in layer.activation_quantizers().items() if n != "keyframe" and q.bits}
    if not energy or layer.settings.residual is None or not layer.settings.residual.is_dynamic:
        return []
    return [bits for name, bits in pool.items() if min(search.ranked[name].values()) >= energy]


def _list(items: Iterable[object]) -> str:
    names = [str(item) for item in items]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
