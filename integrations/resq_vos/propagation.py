"""Masks of the first frame through a video, frame by frame."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from resq_plugin.errors import ConfigError, FrameError, StreamError
from resq_plugin.method import Stream, stream
from resq_vos.bank import Bank
from resq_vos.masks import aggregate, labels_of, resize_masks
from resq_vos.step import ObjectKey, SegmentationStep, VideoModel

__all__ = ["Propagation"]

logger = logging.getLogger(__name__)


class Propagation:
    """Follows any number of objects through one or more videos in step.

    Call it with one frame after another; the first comes with labels. It owns the bank, the masks and the list of
    objects; the model keeps nothing.

    Args:
        model: with `memorize` and `segment`, such as `STM`; float, or converted and calibrated.
        video: a stream of the converted model. Without one, a converted model is quantized frame by frame.
        every: every so many frames one is remembered for good.
        last: also memorize and read the frame before, as STM does. Otherwise (XMem, Cutie, STCN) the memory part
            runs every n-th frame only, and gets a stream of its own whose keyframes are counted in its own calls.

    Attributes:
        bank: what is remembered; yours to read, copy or replace.
        objects: (video, id) of each row.
        masks: probabilities (R, H, W) in the last frame, at its resolution.
        time: number of the last frame, -1 before the first.

    >>> with stream(model) as video:  # doctest: +SKIP
    ...     tracker = Propagation(model, video=video)
    ...     labels = [tracker(frames[0], first_labels), *(tracker(frame) for frame in frames[1:])]
    """

    def __init__(self, model: VideoModel, *, video: Stream | None = None, every: int = 5, last: bool = True) -> None:
        if not isinstance(every, int) or every < 1:
            msg = f"every={every!r} is not allowed; write a whole number of at least 1, e.g. 5."
            raise ConfigError(msg)
        self.model, self.every, self.last = model, every, last
        self.video = video
        self.memory_video: Stream | None = None
        if video is not None and not last:
            self.memory_video = stream(video.model, interval=video.schedule.interval)
        self._forget()

    def _forget(self) -> None:
        self.bank = Bank()
        self.objects: list[ObjectKey] = []
        self.masks: Tensor | None = None
        self.time = -1
        self._previous: Tensor | None = None
        self._known: dict[str, list[ObjectKey]] = {}

    def __call__(self, frame: Tensor, labels: Tensor | None = None) -> Tensor:
        """Take the next frame.

        Args:
            frame: (V, 3, H, W), RGB 0..1, of V videos in step.
            labels: (V, H', W') or (H', W') for one video, whole numbers: objects that appear in this frame, or whose
                masks are known here. An object is overwritten where its number stands; others keep what was found.

        Returns:
            Labels (V, H, W), the number of the object at each pixel, 0 for the background.

        Raises:
            FrameError: the frame is not (V, 3, H, W), or labels do not fit; everything is as before.
        """
        self._check(frame)
        fresh = self._fresh(frame, labels)
        masks, bank = frame.new_zeros((0, *frame.shape[-2:])), self.bank
        step = self.next_step(frame)
        if step is not None:
            self._announce("main", self.video)
            if step.memorizes:
                self._announce("memory", self.memory_video)
            logits, bank = step.run(self.model, self.video, self.memory_video)
            masks = aggregate(logits, step.owners)
        masks, objects = _merge(masks, list(self.objects), fresh)
        self.bank, self.objects, self.masks, self.time = bank, objects, masks, self.time + 1
        self._previous = frame.detach().clone()
        return self.labels()

    def _check(self, frame: Tensor) -> None:
        if not isinstance(frame, Tensor) or frame.dim() != 4 or frame.shape[1] != 3:
            found = tuple(frame.shape) if isinstance(frame, Tensor) else type(frame).__name__
            msg = f"a frame is a tensor (V, 3, H, W), RGB 0..1; got {found}."
            raise FrameError(msg)
        if self._previous is not None and frame.shape != self._previous.shape:
            msg = (
                f"the frame changed to {tuple(frame.shape)} from {tuple(self._previous.shape)}; what is remembered "
                "is of one size. Resize it, or start anew with reset()."
            )
            raise FrameError(msg)

    def _fresh(self, frame: Tensor, labels: Tensor | None) -> dict[ObjectKey, Tensor]:
        """The masks (H, W) that labels bring, by object."""
        if labels is None:
            return {}
        labels = torch.as_tensor(labels)
        labels = labels[None] if labels.dim() == 2 else labels
        if labels.dim() != 3 or labels.shape[0] != frame.shape[0] or labels.is_floating_point():
            msg = (
                f"labels are whole numbers (V, H, W) for V={frame.shape[0]} videos; got {tuple(labels.shape)} "
                f"{str(labels.dtype).removeprefix('torch.')}."
            )
            raise FrameError(msg)
        fresh = {}
        for index, mine in enumerate(labels):
            for number in torch.unique(mine).tolist():
                if number:
                    mask = (mine == number).to(frame)[None]
                    fresh[index, int(number)] = resize_masks(mask, (frame.shape[-2], frame.shape[-1]))[0]
        return fresh

    def _announce(self, part: str, video: Stream | None) -> None:
        """Start a new interval where the rows of a part are not those of its keyframe."""
        if video is None:
            return
        known = self._known.get(part)
        if known is not None and known != self.objects and video.position >= 0:
            came = [key for key in self.objects if key not in known]
            left = [key for key in known if key not in self.objects]
            logger.info(
                "frame %d: objects (video, id) %s appeared, %s left; the %s part starts a new interval",
                self.time + 1,
                came or "none",
                left or "none",
                part,
            )
            video.start_interval()
        self._known[part] = list(self.objects)

    def remove(self, number: int, video: int = 0) -> None:
        """Stop following an object; the next frame starts a new interval."""
        key = video, number
        if key not in self.objects:
            msg = f"object {number} of video {video} is not followed; there are {self.objects or 'none'}."
            raise ConfigError(msg)
        row = self.objects.index(key)
        rest = [index for index in range(len(self.objects)) if index != row]
        self.masks = cast(Tensor, self.masks)[rest]
        self.objects = [self.objects[index] for index in rest]
        if key in self.bank.memories:
            self.bank = self.bank.copy()
            self.bank.remove(key)

    def labels(self, size: tuple[int, int] | None = None) -> Tensor:
        """Labels (V, H, W) of the last frame, at its own resolution or resized to another."""
        if self._previous is None or self.masks is None:
            msg = "there is no frame yet; call the propagation with the first frame and its labels."
            raise StreamError(msg)
        masks = self.masks if size is None else resize_masks(self.masks, size)
        labels = []
        for index in range(self._previous.shape[0]):
            rows = [row for row, (video, _) in enumerate(self.objects) if video == index]
            labels.append(labels_of(masks[rows], [self.objects[row][1] for row in rows]))
        return torch.stack(labels)

    def next_step(self, frame: Tensor) -> SegmentationStep | None:
        """Return what the network will read for that frame, or None where no object is followed."""
        if not self.objects:
            return None
        new = any(key not in self.bank.memories for key in self.objects)
        keep = self.time % self.every == 0
        return SegmentationStep(
            frame=frame,
            previous=cast(Tensor, self._previous),
            masks=cast(Tensor, self.masks),
            owners=torch.tensor([index for index, _ in self.objects], device=frame.device),
            bank=self.bank,
            objects=tuple(self.objects),
            memorizes=self.last or keep or new,
            keep=keep or (new and not self.last),
        )

    def reset(self) -> None:
        """Forget videos, objects, memory and caches; the next frame is the first of new ones."""
        self._forget()
        for video in (self.video, self.memory_video):
            if video is not None:
                video.reset()

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the bank and of the caches, as this simulation holds them."""
        videos = [video for video in (self.video, self.memory_video) if video is not None]
        return {"bank": self.bank.bytes(), "caches": sum(video.state_bytes() for video in videos)}

    def get_state(self) -> dict[str, Any]:
        """Return copies of all that the next frame depends on: bank, masks, objects and the streams' caches."""
        return {
            "bank": self.bank.copy(),
            "objects": list(self.objects),
            "masks": None if self.masks is None else self.masks.clone(),
            "time": self.time,
            "previous": None if self._previous is None else self._previous.clone(),
            "known": {part: list(objects) for part, objects in self._known.items()},
            "video": None if self.video is None else self.video.get_state(),
            "memory_video": None if self.memory_video is None else self.memory_video.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned, in this or another propagation with the same model.

        Raises:
            StreamError: the state is of another kind of propagation; this one is unchanged.
        """
        try:
            bank, objects, masks = state["bank"].copy(), list(state["objects"]), state["masks"]
            time, previous = int(state["time"]), state["previous"]
            known = {part: list(items) for part, items in state["known"].items()}
            videos = {
                "video": (self.video, state["video"]),
                "memory_video": (self.memory_video, state["memory_video"]),
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            msg = f"this is no state of a propagation ({error!r}); pass what get_state() returned."
            raise StreamError(msg) from error
        for name, (mine, theirs) in videos.items():
            if (mine is None) != (theirs is None):
                has = "has no" if theirs is None else "has a"
                msg = f"the state {has} {name}, unlike this propagation; open one alike."
                raise StreamError(msg)
        before = None if self.video is None else self.video.get_state()
        if self.video is not None:
            self.video.set_state(state["video"])
        try:
            if self.memory_video is not None:
                self.memory_video.set_state(state["memory_video"])
        except StreamError:
            if self.video is not None and before is not None:
                self.video.set_state(before)
            raise
        self.bank, self.objects, self.time, self._known = bank, objects, time, known
        self.masks = None if masks is None else masks.clone()
        self._previous = None if previous is None else previous.clone()


def _merge(
    masks: Tensor, objects: list[ObjectKey], fresh: Mapping[ObjectKey, Tensor]
) -> tuple[Tensor, list[ObjectKey]]:
    """Put known masks over found ones; elsewhere in their video the found ones stay."""
    if not fresh:
        return masks, objects
    rows = dict(zip(objects, masks, strict=True))
    for index in {index for index, _ in fresh}:
        taken = torch.stack([mask for (video, _), mask in fresh.items() if video == index]).sum(0).clamp(0, 1)
        for key in objects:
            if key[0] == index:
                rows[key] = rows[key] * (1 - taken)
    rows |= fresh
    order = [*objects, *(key for key in fresh if key not in objects)]
    return torch.stack([rows[key] for key in order]), order
