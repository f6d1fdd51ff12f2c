"""J and F of a run over sequences: per sequence, per object, by distance from the keyframe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_plugin.errors import ConfigError
from resq_plugin.method import Stream
from resq_vos.davis import DavisSequence, read_frame
from resq_vos.metrics import boundary_accuracy, jaccard
from resq_vos.propagation import Propagation
from resq_vos.step import VideoModel

__all__ = ["Followed", "Scores", "follow", "score", "summarize_scores"]

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Followed:
    """What a run found in one sequence.

    Attributes:
        labels: (H, W) of every frame, at the resolution of the annotations.
        positions: distance of each frame from its keyframe; -1 where no stream ran it (the first, float, frame mode).
    """

    labels: tuple[Labels, ...]
    positions: tuple[int, ...]


@torch.no_grad()
def follow(
    model: VideoModel,
    sequence: DavisSequence,
    *,
    video: Stream | None = None,
    every: int = 5,
    frames: int | None = None,
) -> Iterator[tuple[Labels, int]]:
    """Propagate the first annotation through a sequence and yield the labels and position of each frame.

    Args:
        model: float or converted; without ``video`` a converted model is quantized frame by frame.
        sequence: the frames and the first annotation; both may differ in resolution.
        video: a stream, which is reset first.
        every: as in `Propagation`.
        frames: only so many of the first frames.
    """
    if video is not None:
        video.reset()
    propagation = Propagation(model, video=video, every=every)
    first = sequence.labels(0)
    for index, path in enumerate(sequence.frames[:frames]):
        propagation(read_frame(path), torch.from_numpy(first.astype(np.int64)) if index == 0 else None)
        labels = propagation.labels(first.shape)[0].numpy().astype(np.uint8)
        yield labels, -1 if video is None else video.position


@dataclass(frozen=True)
class Scores:
    """J and F of one sequence, 0 to 1.

    Attributes:
        sequence: name.
        objects: numbers.
        j: (objects, frames).
        f: (objects, frames).
        positions: of the frames, (frames,).
    """

    sequence: str
    objects: tuple[int, ...]
    j: NDArray[np.float64]
    f: NDArray[np.float64]
    positions: NDArray[np.int64]


def score(
    sequence: str,
    objects: Sequence[int],
    predictions: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    positions: Sequence[int] | None = None,
) -> Scores:
    """Compare labels of one sequence, as the DAVIS SDK does: its first and its last frame are left out.

    Args:
        sequence: name.
        objects: numbers of the first annotation; one that is missing in a prediction counts as empty.
        predictions: labels (H, W) per frame.
        targets: annotations (H, W) per frame.
        positions: distances from the keyframe.

    Raises:
        ConfigError: other objects are predicted, or the lengths differ.
    """
    if len(predictions) != len(targets) or len(targets) < 3:
        msg = (
            f"sequence {sequence}: {len(predictions)} predictions for {len(targets)} annotations; at least 3 of each."
        )
        raise ConfigError(msg)
    extra = sorted({int(label) for labels in predictions for label in np.unique(labels)} - {0, *objects})
    if extra:
        msg = f"sequence {sequence}: object {extra[0]} is predicted, but the first annotation has {tuple(objects)}."
        raise ConfigError(msg)
    inner = range(1, len(targets) - 1)
    pairs = [[(predictions[t] == number, targets[t] == number) for t in inner] for number in objects]
    j = np.array([[jaccard(*pair) for pair in row] for row in pairs])
    f = np.array([[boundary_accuracy(*pair) for pair in row] for row in pairs])
    positions = [-1] * len(targets) if positions is None else positions
    return Scores(sequence, tuple(objects), j, f, np.array([positions[t] for t in inner]))


def summarize_scores(scores: Sequence[Scores]) -> dict[str, Any]:
    """Average over the frames of an object, then over all objects of all sequences.

    Returns:
        ``J``, ``F`` and ``J&F`` in percent; ``by_distance`` with a list of each; ``sequences`` with each, per object.
    """
    if not scores:
        msg = "there is no sequence to average over."
        raise ConfigError(msg)
    values = {"J": [item.j for item in scores], "F": [item.f for item in scores]}
    means = {name: np.concatenate([rows.mean(1) for rows in parts]) for name, parts in values.items()}
    distances = sorted({int(p) for item in scores for p in item.positions if p >= 0})
    by_distance = {
        name: [
            100
            * float(
                np.concatenate(
                    [
                        rows[:, item.positions == distance].mean(1)
                        for rows, item in zip(parts, scores, strict=True)
                        if (item.positions == distance).any()
                    ]
                ).mean()
            )
            for distance in distances
        ]
        for name, parts in values.items()
    }
    sequences = {
        item.sequence: {
            "J": 100 * float(item.j.mean()),
            "F": 100 * float(item.f.mean()),
            "objects": {
                number: {"J": 100 * float(item.j[row].mean()), "F": 100 * float(item.f[row].mean())}
                for row, number in enumerate(item.objects)
            },
        }
        for item in scores
    }
    j, f = (100 * float(means[name].mean()) for name in ("J", "F"))
    return {"J": j, "F": f, "J&F": (j + f) / 2, "by_distance": by_distance, "sequences": sequences}
