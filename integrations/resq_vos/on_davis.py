"""``resq eval`` on a folder of DAVIS: J and F of float, frame by frame and ResQ."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resq_plugin.errors import ConfigError, nearest
from resq_vos.calibration import record_clips
from resq_vos.davis import DavisSequence, find_sequences, read_frame
from resq_vos.models import build_stm
from resq_vos.overlay import short_side
from resq_vos.schemes import VosVideo, run_scheme, schemes_of
from resq_vos.step import SegmentationStep
from resq_vos.stm import STM

__all__ = ["DavisOptions", "evaluate_davis"]

CLIPS = 8
"""Calibration clips of each sequence, with gaps that spread them over about 40 frames."""
SPREAD = 40


@dataclass(frozen=True)
class DavisOptions:
    """What ``--cfg-options KEY=VALUE`` sets; lists are written with commas.

    Attributes:
        calibration: sequences to find ranges on; they are not measured. Empty takes the list of the split ``train``.
        sequences: what to measure; empty takes the list ``val``, or all.
        year: 2016 (one object) or 2017.
        images: resolution folder of the frames.
        annotations: of the masks.
        frames: only so many of the first frames.
        every: every so many frames one is remembered for good.
        model: ``small`` or ``published``.
        short_side: pixels of the shorter side that the network sees; None keeps the frames as they are.
    """

    calibration: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    year: int | None = None
    images: str | None = None
    annotations: str | None = None
    frames: int | None = None
    every: int = 5
    model: str = "small"
    short_side: int | None = 240

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> DavisOptions:
        """Read ``KEY=VALUE`` texts.

        Raises:
            ConfigError: an unknown key, or a value that is no number where one is needed.
        """
        kinds = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for pair in pairs:
            key, _, text = pair.partition("=")
            if key not in kinds:
                msg = f"--cfg-options {pair}: unknown key.{nearest(key, kinds)} For DAVIS: {', '.join(kinds)}."
                raise ConfigError(msg)
            try:
                values[key] = _value(kinds[key], text)
            except ValueError as error:
                msg = f"--cfg-options {pair}: write a whole number, e.g. {key}=240."
                raise ConfigError(msg) from error
        return cls(**values)


def _value(kind: str, text: str) -> Any:
    if kind.startswith("tuple"):
        return tuple(part for part in text.split(",") if part)
    if "int" in kind:
        return None if text in ("", "None") and "None" in kind else int(text)
    return text


def evaluate_davis(
    root: str,
    checkpoint: str,
    options: DavisOptions,
    *,
    precision: str | None = None,
    interval: int | None = None,
    schemes: Sequence[str] = ("float", "frame", "resq"),
    on_step: Callable[[str, int, int], object] = lambda *_: None,
) -> Iterator[Mapping[str, Any]]:
    """Yield a row per scheme, as `resq_plugin.report` takes them; J is the accuracy.

    ``on_step`` is told what is done now, how many steps are behind, and of how many: a sequence to calibrate on, a
    scheme, or a frame of it.

    Raises:
        ResQError: whatever the folder, the options or the weights lack.
    """
    where: dict[str, Any] = {"year": options.year, "images": options.images, "annotations": options.annotations}
    wanted = schemes_of(["W8A8->W4A8" if precision is None else precision], 3 if interval is None else interval)
    chosen = [scheme for scheme in wanted if scheme.name.replace("dynamic", "resq") in schemes]
    measured = find_sequences(root, options.sequences, **where)
    needs_ranges = any(scheme.config is not None for scheme in chosen)
    calibration = _calibration(root, options, where) if needs_ranges else []
    names = {sequence.name for sequence in calibration}
    measured = [sequence for sequence in measured if sequence.name not in names]
    if not measured:
        msg = "every sequence is calibrated on, and none is left to measure; name fewer in calibration=..."
        raise ConfigError(msg)
    model = build_stm(options.model, checkpoint)
    videos = [_video(sequence, options) for sequence in measured]
    frames = sum(len(video.targets or ()) for video in videos)
    steps, total = itertools.count(), len(calibration) + (1 + frames) * len(chosen)
    clips: list[list[SegmentationStep]] = []
    for sequence in calibration:
        on_step(f"clips of {sequence.name}", next(steps), total)
        clips += _clips(model, _video(sequence, options), options)
    reference = None
    for scheme in chosen:
        on_step(scheme.name if scheme.config is None else f"{scheme.name}: calibrating", next(steps), total)

        def on_frame(name: str = scheme.name) -> None:
            on_step(name, next(steps), total)

        row, run = run_scheme(model, scheme, videos, clips, reference, every=options.every, on_frame=on_frame)
        if scheme.name == "float":
            reference = run
        elif reference is None:  # nobody ran it in float
            row = {**row, "agreement": None}
        yield {**row, "accuracy_by_position": row["by_distance"]["J"] or [row["accuracy"]]}


def _calibration(root: str, options: DavisOptions, where: Mapping[str, Any]) -> list[DavisSequence]:
    year = options.year or 2016
    if not options.calibration and not (Path(root) / "ImageSets" / str(year) / "train.txt").is_file():
        msg = (
            f"{root} has no ImageSets/{year}/train.txt to find ranges on; name sequences that are not measured: "
            "--cfg-options calibration=camel,goat"
        )
        raise ConfigError(msg)
    return find_sequences(root, options.calibration, split="train", **where)


def _video(sequence: DavisSequence, options: DavisOptions) -> VosVideo:
    first = read_frame(sequence.frames[0])
    native = (first.shape[-2], first.shape[-1])
    size = native if options.short_side is None or min(native) <= options.short_side else None
    size = size or short_side(native, options.short_side or min(native))
    files = sequence.frames[: options.frames]

    def frames() -> Iterator[Tensor]:
        for path in files:
            frame = read_frame(path)
            resized = size != (frame.shape[-2], frame.shape[-1])
            yield F.interpolate(frame, size, mode="bilinear", antialias=True) if resized else frame

    targets = [sequence.labels(index) for index in range(len(files))]
    _check_annotations(sequence, targets)
    return VosVideo(sequence.name, frames, targets[0], size, targets)


def _check_annotations(sequence: DavisSequence, targets: Sequence[NDArray[np.uint8]]) -> None:
    """Refuse annotations without an object in the first frame, or of several sizes."""
    paths = [sequence.masks[frame.stem] for frame, _ in zip(sequence.frames, targets, strict=False)]
    if not targets[0].any():
        msg = f"{paths[0]} is empty; the first frame of a sequence has to show the objects that are followed."
        raise ConfigError(msg)
    for path, labels in zip(paths, targets, strict=True):
        if labels.shape != targets[0].shape:
            sizes = "{} × {} where that of the first frame is {} × {}".format(*labels.shape, *targets[0].shape)
            msg = f"{path} is {sizes}; all annotations of a sequence have one size."
            raise ConfigError(msg)


def _clips(model: STM, video: VosVideo, options: DavisOptions) -> list[list[SegmentationStep]]:
    labels = torch.from_numpy(video.first.astype(np.int64))
    gap = max(SPREAD // CLIPS - 3, 0)
    return record_clips(model, video.frames(), labels, length=3, gap=gap, clips=CLIPS, every=options.every)
