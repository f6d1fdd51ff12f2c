"""Float, frame by frame and ResQ on the same videos: one row each, as `resq_plugin.report` shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resq_plugin import calibrate, convert, revert, stream
from resq_plugin.config import ResQConfig
from resq_plugin.method import Stream
from resq_vos.calibration import step_runner
from resq_vos.cost import quantized_only, vos_cost
from resq_vos.evaluation import score, summarize_scores
from resq_vos.propagation import Propagation
from resq_vos.step import SegmentationStep
from resq_vos.stm import FLOAT_LAYERS, STM

__all__ = ["Scheme", "VosVideo", "calibrated", "run_scheme", "schemes_of"]

Labels = NDArray[np.uint8]
FLOAT_TO_W8A8 = 32 * 32 / 64


@dataclass(frozen=True)
class VosVideo:
    """A video with what is known of it.

    Attributes:
        name: of the video.
        frames: makes an iterator of frames (1, 3, H, W), RGB 0..1, whenever it is called.
        first: labels (H', W') of the first frame, at the resolution that masks are wanted in.
        targets: labels of all frames, where there are any.
        size: (H, W) of the frames.
    """

    name: str
    frames: Callable[[], Iterator[Tensor]]
    first: Labels
    size: tuple[int, int]
    targets: Sequence[Labels] | None = None

    @property
    def objects(self) -> tuple[int, ...]:
        """Numbers of the objects in the first frame."""
        return tuple(int(label) for label in np.unique(self.first) if label)


@dataclass(frozen=True)
class Scheme:
    """One way to run the network.

    Attributes:
        name: ``float``, ``frame``, ``resq`` or ``dynamic``.
        config: None for float.
    """

    name: str
    config: ResQConfig | None = None

    @property
    def precision(self) -> str:
        """As rows have it."""
        return "float" if self.config is None else self.config.notation

    @property
    def interval(self) -> int:
        """T; 1 without residual frames."""
        return self.config.interval if self.config is not None and self.config.residual is not None else 1


def schemes_of(precisions: Sequence[str], interval: int = 3, **settings: Any) -> list[Scheme]:
    """Return float, the keyframes' precision frame by frame, and ResQ, for each precision; none twice.

    Keys and values stay in float (``exclude``), as in the paper.
    """
    found = [Scheme("float")]
    for precision in precisions:
        config = ResQConfig.parse(precision, **{"interval": interval, "exclude": FLOAT_LAYERS, **settings})
        frame = Scheme("frame", config.replace(residual=None))
        dynamic = config.residual is not None and config.residual.is_dynamic
        resq = [] if config.residual is None else [Scheme("dynamic" if dynamic else "resq", config)]
        found += [scheme for scheme in (frame, *resq) if scheme not in found]
    return found


@contextlib.contextmanager
def calibrated(model: STM, config: ResQConfig | None, clips: Sequence[Sequence[SegmentationStep]]) -> Iterator[None]:
    """Convert and calibrate a float model inside, and give it back as it was."""
    if config is None:
        yield
        return
    convert(model, config)
    try:
        calibrate(model, clips, run=step_runner(model))
        yield
    finally:
        revert(model)


@dataclass
class Run:
    """What a scheme found: labels (H', W') and distances from the keyframe of every frame of every video."""

    labels: dict[str, list[Labels]] = field(default_factory=dict)
    positions: dict[str, list[int]] = field(default_factory=dict)
    shares: Mapping[str, Mapping[int, float]] | None = None
    state_bytes: dict[str, int] = field(default_factory=dict)


@torch.no_grad()
def run_scheme(
    model: STM,
    scheme: Scheme,
    videos: Sequence[VosVideo],
    clips: Sequence[Sequence[SegmentationStep]],
    reference: Run | None = None,
    *,
    every: int = 5,
    on_frame: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], Run]:
    """Run a scheme on videos and return its row and what it found.

    Args:
        model: the float model; given back as it was.
        scheme: how.
        videos: on what.
        clips: recorded steps to calibrate on.
        reference: the run in float; None where this is it.
        every: as in `Propagation`.
        on_frame: told of each frame.

    Returns:
        The row: ``accuracy`` is J where annotations are known, else J with the float masks, which ``agreement`` is in
        any case, in percent; ``by_distance`` with J and F; ``sequences``; and the run.
    """
    with calibrated(model, scheme.config, clips):
        has_stream = scheme.name in ("resq", "dynamic")
        with stream(model) if has_stream else contextlib.nullcontext() as video:
            run = _play(model, videos, video, every, on_frame)
        gbops = fmean(_gbops(model, scheme, item, run.shares) for item in videos)
    base = fmean(_base(model, item) for item in videos)
    row: dict[str, Any] = {
        "scheme": scheme.name,
        "precision": scheme.precision,
        "interval": scheme.interval,
        "gbops_per_frame": gbops,
        "relative_bops": gbops / base,
        "state_bytes": run.state_bytes,
    }
    if scheme.config is not None and scheme.config.residual is not None and scheme.config.residual.is_dynamic:
        row["threshold"] = scheme.config.policy.threshold
    agreement = _summary(videos, run, (reference or run).labels)
    row |= {"agreement": agreement["J"], "agreement_F": agreement["F"]}
    if all(item.targets is not None for item in videos):
        found = _summary(videos, run, {item.name: item.targets for item in videos})
        row |= {"metric": "J"}
    else:
        found = agreement
        row |= {"metric": "J with float"}
    row |= {"accuracy": found["J"]} | {key: found[key] for key in ("F", "J&F", "by_distance", "sequences")}
    return row, run


def _play(
    model: STM, videos: Sequence[VosVideo], video: Stream | None, every: int, on_frame: Callable[[], None]
) -> Run:
    run = Run()
    for item in videos:
        if video is not None:
            video.reset()
        propagation = Propagation(model, video=video, every=every)
        labels, positions = run.labels.setdefault(item.name, []), run.positions.setdefault(item.name, [])
        for index, frame in enumerate(item.frames()):
            propagation(frame, torch.from_numpy(item.first.astype(np.int64)) if index == 0 else None)
            labels.append(propagation.labels(item.first.shape)[0].numpy().astype(np.uint8))
            positions.append(-1 if video is None else video.position)
            on_frame()
        run.state_bytes = propagation.state_bytes()
    if video is not None:
        run.shares = video.bit_shares() or None
    return run


def _summary(videos: Sequence[VosVideo], run: Run, targets: Mapping[str, Any]) -> dict[str, Any]:
    return summarize_scores(
        [
            score(item.name, item.objects, run.labels[item.name], targets[item.name], run.positions[item.name])
            for item in videos
        ]
    )


def _gbops(model: STM, scheme: Scheme, item: VosVideo, shares: Mapping[str, Mapping[int, float]] | None) -> float:
    if scheme.config is None:
        return _base(model, item) * FLOAT_TO_W8A8
    objects = max(len(item.objects), 1)
    return quantized_only(vos_cost(model, (1, 3, *item.size), objects=objects, shares=shares)).bops_per_frame / 1e9


def _base(model: STM, item: VosVideo) -> float:
    """GBOPs per frame of frame quantization at W8A8."""
    config = ResQConfig.parse("W8A8", exclude=FLOAT_LAYERS)
    cost = vos_cost(model, (1, 3, *item.size), config, objects=max(len(item.objects), 1))
    return quantized_only(cost).bops_per_frame / 1e9
