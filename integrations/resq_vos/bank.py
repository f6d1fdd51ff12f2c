"""What STM remembers: plain objects outside the model, owned by whoever made them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Bank", "Memory", "Readable", "TensorBank", "read_memory", "repeated"]


class Readable(Protocol):
    """What `segment` needs of a bank."""

    @property
    def owners(self) -> Tensor | None:
        """The frame of each row (R,); None where there is one frame."""
        ...

    def read(self, query: Tensor) -> Tensor:
        """Query keys (V, C_k, h, w) to read values (R, C_v, h, w)."""
        ...


def repeated(x: Tensor, rows: int) -> Tensor:
    """One frame's (1, C, H, W) for every row (R, C, H, W); not expanded, which hides R from exported graphs."""
    return x if rows == 1 else torch.cat([x] * rows)


def read_memory(query: Tensor, keys: Tensor, values: Tensor, switch: Tensor | None = None) -> Tensor:
    """Attend from every pixel of a frame to every pixel remembered: softmax of k·q / √C_k, in float.

    Args:
        query: (R, C_k, h, w).
        keys: (R, C_k, P), P = positions of all remembered frames.
        values: (R, C_v, P).
        switch: (R, 1, P), added to the logits of places: a large negative number switches one off.

    Returns:
        (R, C_v, h, w).
    """
    logits = keys.transpose(1, 2) @ query.flatten(2) / math.sqrt(keys.shape[1])
    if switch is not None:
        logits = logits + switch.transpose(1, 2)
    read = values @ torch.softmax(logits, dim=1)
    return read.reshape(*read.shape[:2], *query.shape[2:])


@dataclass(frozen=True)
class TensorBank:
    """A bank as two tensors, whose rows remember equally many frames; what exported graphs take.

    Attributes:
        keys: (R, C_k, P).
        values: (R, C_v, P).
        owners: the frame of each row (R,); None where there is one frame.
    """

    keys: Tensor
    values: Tensor
    owners: Tensor | None = None

    def read(self, query: Tensor) -> Tensor:
        """Query keys (V, C_k, h, w) to read values (R, C_v, h, w)."""
        rows = self.keys.shape[0]
        query = repeated(query, rows) if self.owners is None else query[self.owners]
        return read_memory(query, self.keys, self.values)


@dataclass
class Memory:
    """What is remembered of one object.

    Attributes:
        frame: number of the frame among the videos in step.
        kept: keys (C_k, h·w) and values (C_v, h·w) of the frames that are kept for good.
        last: those of the frame before, which the next one replaces.
    """

    frame: int = 0
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    last: tuple[Tensor, Tensor] | None = None

    def entries(self) -> list[tuple[Tensor, Tensor]]:
        """All that is remembered, oldest first."""
        return [*self.kept, *([self.last] if self.last is not None else [])]

    def keep_last(self) -> None:
        """Keep the last frame for good."""
        if self.last is not None:
            self.kept.append(self.last)
            self.last = None


class Bank:
    """Memories of any number of objects; the rows of `segment` are its objects, in order.

    Objects come and go on their own, and may remember different numbers of frames. The tensors are never written to,
    so `copy` is cheap.
    """

    def __init__(self) -> None:
        self.memories: dict[Hashable, Memory] = {}

    @property
    def objects(self) -> list[Hashable]:
        """The objects in the order of rows."""
        return list(self.memories)

    @property
    def owners(self) -> Tensor:
        """The frame of each row, (R,)."""
        return torch.tensor([memory.frame for memory in self.memories.values()], dtype=torch.int64)

    def add(
        self, objects: Sequence[Hashable], keys: Tensor, values: Tensor, owners: Tensor | None = None, *, keep: bool
    ) -> None:
        """Remember a frame.

        Args:
            objects: whose rows these are; new ones are appended.
            keys: (R, C_k, h, w).
            values: (R, C_v, h, w).
            owners: the frame of each row (R,).
            keep: for good, else until the next call.
        """
        frames = [0] * len(objects) if owners is None else owners.tolist()
        for row, name in enumerate(objects):
            memory = self.memories.setdefault(name, Memory(frames[row]))
            memory.last = None
            entry = keys[row].flatten(1), values[row].flatten(1)
            if keep:
                memory.kept.append(entry)
            else:
                memory.last = entry

    def remove(self, name: Hashable) -> None:
        """Forget an object."""
        del self.memories[name]

    def order(self, objects: Sequence[Hashable]) -> None:
        """Put the rows into that order, and forget objects that are not among them."""
        self.memories = {name: self.memories[name] for name in objects}

    def copy(self) -> Bank:
        """Return a bank that changes apart from this one; the tensors are shared."""
        other = Bank()
        other.memories = {name: Memory(m.frame, list(m.kept), m.last) for name, m in self.memories.items()}
        return other

    def read(self, query: Tensor) -> Tensor:
        """Query keys (V, C_k, h, w) to read values (R, C_v, h, w); every object reads its own memory."""
        rows = []
        for memory in self.memories.values():
            keys, values = (torch.cat(parts, dim=1) for parts in zip(*memory.entries(), strict=True))
            rows.append(read_memory(query[memory.frame : memory.frame + 1], keys[None], values[None]))
        return torch.cat(rows)

    def stacked(self) -> TensorBank:
        """Return the bank as two tensors; every object must remember equally many frames."""
        pairs = [zip(*memory.entries(), strict=True) for memory in self.memories.values()]
        joined = [tuple(torch.cat(parts, dim=1) for parts in pair) for pair in pairs]
        return TensorBank(torch.stack([k for k, _ in joined]), torch.stack([v for _, v in joined]), self.owners)

    def bytes(self) -> int:
        """Bytes that the bank holds; it grows with the video."""
        entries = [entry for memory in self.memories.values() for entry in memory.entries()]
        return sum(tensor.numel() * tensor.element_size() for entry in entries for tensor in entry)
