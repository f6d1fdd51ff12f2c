"""What belongs to a converted model as a whole, and so to its checkpoints: folded batch norms, the scene threshold.

Both are kept beside the modules and travel in state dicts under the keys ``resq.folded`` and ``resq.scene_threshold``.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from resq_plugin.conversion.folding import folded_pairs, set_folded_pairs
from resq_plugin.errors import CheckpointError
from resq_plugin.method import scene_threshold, set_scene_threshold

__all__ = ["STATE_KEYS", "attach_model_state", "detach_model_state"]

_FOLDED, _THRESHOLD = STATE_KEYS = ("resq.folded", "resq.scene_threshold")
_HANDLES = "_resq_handles"


def attach_model_state(model: nn.Module) -> None:
    """Let the state dicts of a model carry its own state."""
    model.__dict__[_HANDLES] = [
        model.register_state_dict_post_hook(_save),
        model.register_load_state_dict_pre_hook(_load),
    ]


def detach_model_state(model: nn.Module) -> None:
    """Undo `attach_model_state` in every part of a model."""
    for module in model.modules():
        for handle in module.__dict__.pop(_HANDLES, ()):
            handle.remove()
        set_scene_threshold(module, None)


def _save(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    state_dict[prefix + _FOLDED] = _encode(folded_pairs(module))
    threshold = scene_threshold(module)
    if threshold is not None:
        state_dict[prefix + _THRESHOLD] = torch.tensor(threshold, dtype=torch.float64, device="cpu")


def _load(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    folded = state_dict.pop(prefix + _FOLDED, None)
    if folded is not None:  # else a float checkpoint
        set_folded_pairs(module, _decode(folded, prefix + _FOLDED))
    threshold = state_dict.pop(prefix + _THRESHOLD, None)
    if threshold is not None:
        set_scene_threshold(module, float(threshold))


def _encode(pairs: dict[str, str]) -> Tensor:
    return torch.tensor(list(json.dumps(pairs).encode()), dtype=torch.uint8, device="cpu")


def _decode(value: Tensor, key: str) -> dict[str, str]:
    try:
        pairs = json.loads(bytes(value.tolist()))
        return {str(layer): str(norm) for layer, norm in pairs.items()}
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"{key} cannot be read ({error}). The checkpoint is damaged."
        raise CheckpointError(msg) from error
