"""Noticing that the numbers layers compute with are others than at the keyframe."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from resq_plugin.method.layers import ResidualLayer

__all__ = ["Numbers"]

Slot = tuple[dict[str, Any], str]
"""A place in a module: one of its tables, and the key."""


class Numbers:
    """All tensors that some layers compute with, known by their places: walking modules takes too long for each frame.

    Watched are Parameters, the activation norm, and the Parameters and statistics of folded batch norms.
    """

    def __init__(self, layers: Iterable[ResidualLayer]) -> None:
        self.layers = list(layers)
        own = ResidualLayer.numbers_version
        self._special: list[ResidualLayer] = [layer for layer in self.layers if type(layer).numbers_version is not own]
        self.find()

    def find(self) -> None:
        """Look for the places anew, because modules may have been replaced."""
        self._slots = [slot for layer in self.layers for slot in _slots_of(layer)]
        self._stamped = [slot for layer in self.layers if layer not in self._special for slot in _slots_of(layer)]

    def version(self) -> Hashable:
        """Change whenever a tensor is written or replaced; values are not read.

        A backend that overrides `ResidualLayer.numbers_version` tells by itself, also what is written behind
        autograd's back (``.data``); of other layers the stamps of their tensors are taken.
        """
        tensors = _tensors(self._stamped)
        special = tuple([layer.numbers_version() for layer in self._special])
        return tuple(map(Tensor.data_ptr, tensors)), _versions(tensors), special

    def checksum(self) -> int:
        """CRC-32 of the values, which says whether two models compute with the same."""
        found = 0
        for tensor in _tensors(self._slots):
            if not tensor.is_meta:
                values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                found = zlib.crc32(values.numpy().data, found)
        return found


def _slots_of(layer: ResidualLayer) -> list[Slot]:
    norms = layer.__dict__.get("_folded", ())
    slots: list[Slot] = [
        (module._parameters, key) for module in (*layer.modules(), *norms) for key in module._parameters
    ]
    slots.append((layer._buffers, "activation_norm"))
    return slots + [(norm._buffers, key) for norm in norms for key in ("running_mean", "running_var")]


def _tensors(slots: Iterable[Slot]) -> list[Tensor]:
    """The tensors that lie there now."""
    return [tensor for owner, key in slots if (tensor := owner.get(key)) is not None]


def _versions(tensors: list[Tensor]) -> tuple[int, ...]:
    try:
        return tuple([tensor._version for tensor in tensors])
    except RuntimeError:  # tensors made in inference mode have no version
        return tuple([-1 if tensor.is_inference() else tensor._version for tensor in tensors])
