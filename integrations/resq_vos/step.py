"""One step of the network as a value: everything it reads, so that it can be recorded and run again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch.utils._pytree as pytree
from torch import Tensor

from resq_plugin.method import Stream
from resq_vos.bank import Bank, Memory, Readable

__all__ = ["ObjectKey", "SegmentationStep", "VideoModel"]

ObjectKey = tuple[int, int]
"""Number of the video and of the object in it."""


class VideoModel(Protocol):
    """Two pure steps; what is remembered is the caller's."""

    def memorize(self, frame: Tensor, masks: Tensor, owners: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frame (V, 3, H, W) and probabilities (R, H, W) to keys and values (R, C, h, w)."""
        ...

    def segment(self, frame: Tensor, bank: Readable) -> Tensor:
        """Frame (V, 3, H, W) to log-odds (R, H, W)."""
        ...


@dataclass(frozen=True)
class SegmentationStep:
    """Memorize the frame before and segment this one. A pytree, so `calibrate` takes clips of them.

    Attributes:
        frame: the frame to segment (V, 3, H, W).
        previous: the frame before (V, 3, H, W).
        masks: its probabilities (R, H, W).
        owners: the video of each row (R,).
        bank: what was remembered before.
        objects: of each row.
        memorizes: whether the frame before is memorized at all.
        keep: for good.
    """

    frame: Tensor
    previous: Tensor
    masks: Tensor
    owners: Tensor
    bank: Bank
    objects: tuple[ObjectKey, ...]
    memorizes: bool = True
    keep: bool = False

    def run(
        self, model: VideoModel, video: Stream | None = None, memory_video: Stream | None = None
    ) -> tuple[Tensor, Bank]:
        """Run the step; it changes nothing but the streams.

        Args:
            model: the network.
            video: stream that this is one frame of.
            memory_video: stream of the memory part, where that has its own.

        Returns:
            Log-odds (R, H, W) and the bank as it is afterwards.
        """
        bank = self.bank.copy()
        with contextlib.ExitStack() as stack:
            if memory_video is None:
                stack.enter_context(_frame_of(video, self.frame))
            if self.memorizes:
                with _frame_of(memory_video, self.previous):
                    keys, values = model.memorize(self.previous, self.masks, self.owners)
                bank.add(self.objects, keys, values, self.owners, keep=self.keep)
                for key in self.objects:
                    if key not in self.bank.memories:  # what a user labelled is never forgotten
                        bank.memories[key].keep_last()
            bank.order(self.objects)
            if memory_video is not None:
                stack.enter_context(_frame_of(video, self.frame))
            return model.segment(self.frame, bank), bank


def _frame_of(video: Stream | None, frame: Tensor) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if video is None else video.frame(frame)


def _register(kind: type[Any], names: tuple[str, ...]) -> None:
    def flatten(value: Any) -> tuple[list[Any], Any]:
        return [getattr(value, name) for name in names], None

    def unflatten(values: Any, _: Any) -> Any:
        made = object.__new__(kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(made, name, value)
        return made

    pytree.register_pytree_node(kind, flatten, unflatten, serialized_type_name=f"resq_vos.{kind.__name__}")


_register(Memory, ("frame", "kept", "last"))
_register(Bank, ("memories",))
_register(SegmentationStep, tuple(field.name for field in fields(SegmentationStep)))
