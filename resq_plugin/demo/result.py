"""What a run of the demo leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["DemoResult", "Showcase"]


@dataclass
class Showcase:
    """Pictures of one interval of the longest T of the first video.

    Attributes:
        frames: keyframe and residual frames, (T, 3, H, W), normalised.
        labels: of each frame, (T, H, W): the true ones, or those of the float model.
        predictions: by scheme, labels (H, W) of each frame.
        choices: bits of each residual frame, (h, w), of `layer`.
        pool: bits to choose from.
        layer: name of the layer whose choices are shown.
    """

    frames: Tensor
    labels: Tensor
    predictions: dict[str, list[Tensor]] = field(default_factory=dict)
    choices: list[Tensor] = field(default_factory=list)
    pool: tuple[int, ...] = ()
    layer: str = ""


@dataclass
class DemoResult:
    """What the demo measured.

    Attributes:
        rows: one per scheme, precision and T, see `resq_plugin.report.rows`; also ``by_distance`` and
            ``agreement_by_distance``, per position in the interval.
        showcase: pictures.
    """

    rows: list[dict[str, Any]]
    showcase: Showcase
