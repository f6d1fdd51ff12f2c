"""State dicts of tensors only: MMEngine moves every value to the CPU, but AIMET's quantizers store dicts."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["flatten_states"]

EXTRA = "._extra_state"


def flatten_states(model: nn.Module) -> None:
    """Let the state dicts of a model have ``<quantizer>._extra_state.<name>`` for every entry of such a dict."""
    model.register_state_dict_post_hook(_flatten)
    model.register_load_state_dict_pre_hook(_gather)


def _flatten(module: Any, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:  # noqa: ARG001
    for key in [key for key, value in state_dict.items() if key.endswith(EXTRA) and isinstance(value, dict)]:
        state_dict.update({f"{key}.{name}": value for name, value in state_dict.pop(key).items()})


def _gather(module: Any, state_dict: dict[str, Any], *args: Any) -> None:  # noqa: ARG001
    for key in [key for key in state_dict if f"{EXTRA}." in key]:
        owner, _, name = key.rpartition(".")
        state_dict.setdefault(owner, {})[name] = state_dict.pop(key)
