"""Which clips make which step: a function of seed and step alone, so that resuming needs no state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler

from resq_plugin.errors import ConfigError
from resq_plugin.training.settings import TrainConfig

__all__ = ["Clips", "interval_of", "step_indices", "steps_of"]


class Clips(Protocol):
    """A data set of labelled clips.

    Item ``i`` is ``(frames, targets)``: frames (T, C, H, W), and targets a tensor (T, ...), or a list of T with None
    where a frame has no label. T is at least the longest interval to be trained. If there is a method
    ``set_epoch(epoch)``, it is called before every pass over the data, for items that are drawn at random.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


def step_indices(length: int, size: int, seed: int, step: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the clips of one step.

    Every pass over the data has its own random order; what does not fill a step is left out of that pass.

    Args:
        length: number of clips.
        size: clips per step, of all processes together.
        seed: of the order.
        step: counted from 0.

    Returns:
        The pass, and (pass, index) of every clip; a step that needs more clips than there are takes several passes.
    """
    if length < size:  # small sets: passes follow on each other without a seam
        first = step * size
        pairs = [divmod(first + offset, length) for offset in range(size)]
        return pairs[0][0], [(epoch, _order(length, seed, epoch)[place]) for epoch, place in pairs]
    per_pass = length // size
    epoch, place = divmod(step, per_pass)
    order = _order(length, seed, epoch)[place * size : (place + 1) * size]
    return epoch, [(epoch, index) for index in order]


def _order(length: int, seed: int, epoch: int) -> list[int]:
    order = list(range(length))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def interval_of(config: TrainConfig, step: int) -> int:
    """T of one step: drawn from the set, the same in every process."""
    return random.Random(f"{config.seed}/interval/{step}").choice(config.intervals)


class _Steps(Sampler[list[tuple[int, int]]]):
    def __init__(self, length: int, config: TrainConfig, start: int, rank: int, world: int) -> None:
        self.length, self.config, self.start, self.rank, self.world = length, config, start, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.config.batch * self.world
        for step in range(self.start, self.config.steps):
            _, pairs = step_indices(self.length, size, self.config.seed, step)
            yield pairs[self.rank :: self.world]

    def __len__(self) -> int:
        return self.config.steps - self.start


class _Drawn:
    """Clips by (pass, index); sets the pass where the items depend on it."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, Any]:
        epoch, index = key
        if hasattr(self.clips, "set_epoch"):
            self.clips.set_epoch(epoch)
        return self.clips[index]


def steps_of(clips: Clips, config: TrainConfig, start: int, rank: int = 0, world: int = 1) -> Iterator[list[Any]]:
    """Yield the clips of every step from ``start`` on, those of this process.

    Raises:
        ConfigError: the data set is empty or has no length.
    """
    try:
        length = len(clips)
    except TypeError as error:
        msg = (
            f"clips of type {type(clips).__name__} have no length; pass a data set with __len__ and __getitem__, "
            "such as resq_plugin.training.StillClips or a list of (frames, targets)."
        )
        raise ConfigError(msg) from error
    if not length:
        msg = "there is no clip to train on; pass a data set of (frames (T, C, H, W), targets) items."
        raise ConfigError(msg)
    sampler = _Steps(length, config, start, rank, world)
    loader: Any = DataLoader(
        _Drawn(clips),  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=config.workers,
        collate_fn=list,
        generator=torch.Generator().manual_seed(config.seed),  # the global one stays as it is
    )
    yield from loader
