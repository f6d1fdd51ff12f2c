"""Does a state dict belong to a network? Names and shapes compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from resq_plugin.conversion.model_state import STATE_KEYS
from resq_plugin.errors import CheckpointError

__all__ = ["Match", "is_range_of", "match_state", "unwrap_state"]

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training loops store a state dict."""
PREFIXES = ("module.", "model.", "_orig_mod.", "architecture.", "state_dict.", "network.", "net.")
AVERAGED = ("ema_model.", "model_ema.", "ema.", "ema_", "averaged_model.")
COUNTERS = ("n_averaged", "steps")
"""What averaged models count beside their weights."""
SHOWN = 3


@dataclass(frozen=True)
class Match:
    """A state dict under the names of a network.

    Attributes:
        state: every entry that the network has, and what else was allowed to stay.
        notices: what was done to the file's names, one sentence each; empty when it fits as it is.
    """

    state: dict[str, Any]
    notices: tuple[str, ...] = field(default=())


def unwrap_state(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the state dict in what a training loop stores; it may be the whole."""
    for key in WRAPPERS:
        if isinstance(values.get(key), Mapping):
            return unwrap_state(values[key])
    return values


def is_range_of(layers: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name of a calibrated model's state dict is one of a range or of the conversion, and not of a weight.

    Args:
        layers: names of the layers that can be converted.
    """
    names = set(layers)

    def is_range(key: str) -> bool:
        if key.endswith(STATE_KEYS):
            return True
        parts = key.split(".")
        inside = [place for place in range(len(parts)) if ".".join(parts[:place]) in names]
        return bool(inside) and parts[inside[-1] :] not in (["weight"], ["bias"])

    return is_range


def match_state(
    state: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    *,
    source: object,
    network: str,
    allowed: Callable[[str], bool] = lambda _: False,
    unused: Sequence[str] = (),
) -> Match:
    """Compare a state dict with a network by names and shapes.

    Known prefixes (``module.``, ``model.``, ``ema_``, ...) are taken off where that makes names fit. A counter
    ``num_batches_tracked`` that a file lacks keeps the network's value, because no output depends on it in evaluation.

    Args:
        state: of the file.
        expected: state dict of the float network.
        source: the file, for messages.
        network: what it is loaded into, for messages.
        allowed: whether the file may have a further name, such as that of a range; the caller reads it.
        unused: beginnings of names, such as ``auxiliary_head.``, that no result depends on: either side may lack them.

    Raises:
        CheckpointError: the file lacks an entry of the network, has one that the network lacks, or has it in another
            shape; some are named with their counts.
    """
    found, notices = _without_prefixes({str(key): value for key, value in state.items()}, expected)
    found, dropped = _without_averages(found, expected)
    notices += dropped
    nothing_fits = not _fitting(found, expected)
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected and not allowed(key)]
    for beginning in unused:
        ours, theirs = ([key for key in keys if key.startswith(beginning)] for keys in (missing, extra))
        if ours or theirs:
            where = f"has {len(theirs)} entries {beginning}* that {network} lacks" if theirs else "lacks them"
            notices.append(f"{beginning}* is not used in a test; {source} {where}")
        missing, extra = [key for key in missing if key not in ours], [key for key in extra if key not in theirs]
        found = {key: value for key, value in found.items() if key not in theirs}
        found |= {key: expected[key] for key in ours}
    counters = [key for key in missing if key.rpartition(".")[2] == "num_batches_tracked"]
    found |= {key: expected[key] for key in counters}
    missing = [key for key in missing if key not in counters]
    other = [key for key, value in expected.items() if key in found and _shape(found[key]) != _shape(value)]
    if missing or extra or other:
        text = _misfit(found, expected, (missing, extra, other), len(state), nothing_fits=nothing_fits)
        msg = f"{source} does not fit {network}; the model is unchanged. {text}"
        raise CheckpointError(msg)
    return Match(found, tuple(notices))


def _without_prefixes(state: dict[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take off the prefixes, up to three in a row, with which most names fit."""
    best, taken, found = _fitting(state, known), "", state
    tried = [(state, "")]
    for _ in range(3):
        tried = [
            (_strip(names, prefix), before + prefix)
            for names, before in tried
            for prefix in PREFIXES + AVERAGED
            if any(key.startswith(prefix) and key not in known for key in names)
        ]
        for names, prefixes in tried:
            fitting = _fitting(names, known)
            if fitting > best:
                best, taken, found = fitting, prefixes, names
    if not taken:
        return state, []
    return {key: value for key, value in found.items() if key in known or key not in COUNTERS}, [
        f"the prefix {taken} was taken off its names"
    ]


def _strip(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Take a prefix off the names that have it; where that name is there already, both stay."""
    return {
        (key.removeprefix(prefix) if key.removeprefix(prefix) not in state else key): value
        for key, value in state.items()
    }


def _fitting(state: Mapping[str, Any], known: Mapping[str, Any]) -> int:
    return sum(key in known for key in state)


def _without_averages(state: dict[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Leave out averaged copies beside the weights, as MMCV 1 stored them: ``ema_conv_weight``."""
    flat = {key.replace(".", "_") for key in known} | set(known)
    copies = {
        key
        for key in state
        for prefix in AVERAGED
        if key not in known and key.startswith(prefix) and key.removeprefix(prefix) in flat
    }
    if not copies:
        return state, []
    rest = {key: value for key, value in state.items() if key not in copies}
    return rest, [f"its {len(copies)} averaged weights ({min(copies)}, ...) beside the others are not used"]


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _misfit(
    found: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    faults: tuple[list[str], list[str], list[str]],
    entries: int,
    *,
    nothing_fits: bool,
) -> str:
    missing, extra, other = faults
    parts = []
    if missing:
        parts.append(f"Missing keys: {len(missing)} of the network's {len(expected)} ({_some(missing)}).")
    if extra:
        parts.append(f"Unexpected keys: {len(extra)} of the file's {entries} ({_some(extra)}).")
    if other:
        shapes = [f"{key} {_shape(found[key])} in the file, {_shape(expected[key])} in the network" for key in other]
        parts.append(f"{len(other)} size mismatch for {_some(shapes, '; ')}.")
    if nothing_fits:
        advice = "No name fits: it is of another network, or under a prefix that is not known; take that off."
    elif other and not missing and not extra:
        advice = "Set the number of classes and the widths of the network to those of the file, or take another file."
    else:
        advice = "Take the checkpoint of this very network, or build the network that it belongs to."
    return " ".join([*parts, advice])


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = ["..."] if len(names) > SHOWN else []
    return separator.join([*names[:SHOWN], *more])
