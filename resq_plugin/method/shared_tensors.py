"""Tensors of one frame that are kept already, so that who reads the same one keeps it no second time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from weakref import ref

from torch import Tensor

from resq_plugin.method.held import Held

__all__ = ["SharedTensors"]


class SharedTensors:
    """What was kept of which tensor of the network, within one frame.

    A tensor is known by its identity, as long as it lives, and by the counter of what was written to it. Inference
    tensors count nothing, so that of them only the values tell.
    """

    def __init__(self) -> None:
        self._known: dict[int, list[tuple[ref[Tensor], int | None, Hashable, Held]]] = {}

    def clear(self) -> None:
        """Begin a frame."""
        self._known.clear()

    def add(self, tensor: Tensor, held: Held, kind: Hashable) -> None:
        """Remember what was kept of a tensor; what is of one ``kind`` and one tensor is the same."""
        self._known.setdefault(id(tensor), []).append((ref(tensor), _version(tensor), kind, held))

    def find(self, tensor: Tensor, kind: Hashable) -> Iterator[tuple[Held, bool]]:
        """What was kept of this tensor, and whether it is certain that the same would be kept of it now."""
        for known, version, other, held in self._known.get(id(tensor), ()):
            if known() is tensor and version == _version(tensor):
                yield held, kind == other and version is not None


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
