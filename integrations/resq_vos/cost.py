"""Bit operations of video object segmentation, with the convention of the paper's Table 3.

A frame runs the query trunk once; the memory trunk, which sees the frame before, and the whole decoder run once per
object. Keys, values and what is read from memory stay in float and are not counted, as in the paper ("memory
operations in float"). The 7×7 stems and the last convolution are counted here; without them the published figures come
out nearest, see `TABLE3_UNCOUNTED`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resq_plugin.config import ResQConfig
from resq_plugin.cost import Cost, measure_cost
from resq_plugin.errors import ConfigError
from resq_vos.stm import STM

__all__ = [
    "DAVIS_2016_VAL",
    "DAVIS_2017_VAL",
    "TABLE3_UNCOUNTED",
    "Video",
    "mean_over_videos",
    "quantized_only",
    "vos_cost",
]

TABLE3_UNCOUNTED = ("query.stem", "memory.stem", "memory.mask_stem", "predict")
"""What has to be left out beside the float layers to get nearest to Table 3 (0.1 %); our fit, not the paper's word."""


@dataclass(frozen=True)
class Video:
    """What the cost of a video depends on.

    Attributes:
        width: of its frames in pixels, at a height of 480.
        objects: how many are followed.
        frames: N; the first is given, so N - 1 of them run the network.
    """

    width: int
    objects: int
    frames: int

    def mean_bops(self, cost: Cost, interval: int) -> float:
        """BOPs per frame: of N - 1 frames, ``ceil((N - 1) / T)`` are keyframes."""
        run = self.frames - 1
        keyframes = -(-run // interval)
        return (keyframes * cost.bops_keyframe + (run - keyframes) * cost.bops_residual) / run


def _videos(text: str) -> dict[str, Video]:
    rows = [line.split() for line in text.split(";") if line.strip()]
    return {name: Video(int(width), int(objects), int(frames)) for name, width, objects, frames in rows}


DAVIS_2017_VAL = _videos(
    "bike-packing 910 2 69; blackswan 854 1 50; bmx-trees 854 2 80; breakdance 854 1 84; camel 854 1 90;"
    "car-roundabout 854 1 75; car-shadow 854 1 40; cows 854 1 104; dance-twirl 854 1 90; dog 854 1 60;"
    "dogs-jump 854 3 66; drift-chicane 854 1 52; drift-straight 854 1 50; goat 854 1 90; gold-fish 854 5 78;"
    "horsejump-high 854 2 50; india 854 3 81; judo 854 2 34; kite-surf 854 3 50; lab-coat 854 5 47; libby 854 1 49;"
    "loading 854 3 50; mbike-trick 854 2 79; motocross-jump 854 2 40; paragliding-launch 854 3 80; parkour 854 1 100;"
    "pigs 854 3 79; scooter-black 854 2 43; shooting 1152 3 40; soapbox 854 3 99"
)
"""The 30 videos of DAVIS-2017 val, with 61 objects."""
_ONLY_2017 = (
    "bike-packing", "dogs-jump", "gold-fish", "india", "judo", "lab-coat", "loading", "mbike-trick", "pigs",
    "shooting",
)  # fmt: skip
DAVIS_2016_VAL = {
    name: dataclasses.replace(video, objects=1) for name, video in DAVIS_2017_VAL.items() if name not in _ONLY_2017
}
"""The 20 videos of DAVIS-2016 val; all that moves is one object."""


def quantized_only(cost: Cost, uncounted: Sequence[str] = ()) -> Cost:
    """Leave out the layers that stay in float, and those named."""
    layers = tuple(row for row in cost.layers if row.precision != "float" and row.name not in uncounted)
    return dataclasses.replace(cost, layers=layers)


def vos_cost(
    model: STM,
    shape: Sequence[int],
    config: ResQConfig | None = None,
    *,
    objects: int = 1,
    shares: Mapping[str, Mapping[int, float]] | None = None,
) -> Cost:
    """Count one frame of a video with a number of objects: memorize the frame before, segment this one.

    Args:
        model: float or converted.
        shape: (1, 3, H, W).
        config: as in `measure_cost`.
        objects: how many.
        shares: as in `measure_cost`.

    Raises:
        ConfigError: fewer than one object.
    """
    if not isinstance(objects, int) or objects < 1:
        msg = f"objects={objects!r} is not allowed; write a whole number of at least 1."
        raise ConfigError(msg)
    return measure_cost(model, shape, config, shares, arguments=(objects,))


def mean_over_videos(cost_of: Callable[[int, int], Cost], videos: Mapping[str, Video], interval: int) -> float:
    """BOPs per frame, averaged over videos.

    Args:
        cost_of: ``cost_of(width, objects)``, the cost of a frame.
        videos: what to average over.
        interval: T.
    """
    costs = {(video.width, video.objects): cost_of(video.width, video.objects) for video in videos.values()}
    return statistics.fmean(video.mean_bops(costs[video.width, video.objects], interval) for video in videos.values())
