"""The method: quantizers, the policy, the two paths of a layer, and time (Eq. 1-6, 9-11)."""

from __future__ import annotations

from resq_plugin.method.calls import Call, CountingExecutor
from resq_plugin.method.frame_counts import FrameCounts, shares_of
from resq_plugin.method.frames import frame_to, image_of, looks_like_pixels, unusable_values
from resq_plugin.method.held_grid import GRID_BYTES, grid_dims, pays
from resq_plugin.method.kept_numbers import KeptNumbers, compare_numbers, numbers_are_settled, settled_numbers
from resq_plugin.method.layer_cache import LayerCache
from resq_plugin.method.layers import (
    ActivationQuantizer,
    LayerSettings,
    ResidualLayer,
    TrainableRange,
    dense_execution,
    executing,
    residual_layers,
)
from resq_plugin.method.policy import choose, error_map, mix, share_error
from resq_plugin.method.quantizer import (
    HALF_TYPES,
    UniformQuantizer,
    fake_quantize,
    fake_quantize_weight,
    integer_range,
    is_lowest,
    quantize_to_integers,
    scale_from_range,
    settle_lowest,
    weight_range,
    weight_scale,
)
from resq_plugin.method.refresh import TRANSPOSED, count_macs, refresh_groups
from resq_plugin.method.schedule import make_schedule, relative_change, scene_threshold, set_scene_threshold
from resq_plugin.method.stream_state import StreamState
from resq_plugin.method.told import is_news
from resq_plugin.method.unfit_frames import (
    FAILURES,
    cure_of,
    evaluating,
    failure_on,
    telling_unfit_frames,
)
from resq_plugin.method.video_stream import Stream, stream
from resq_plugin.method.workspace import Workspace

__all__ = [
    "FAILURES",
    "GRID_BYTES",
    "HALF_TYPES",
    "TRANSPOSED",
    "ActivationQuantizer",
    "Call",
    "CountingExecutor",
    "FrameCounts",
    "KeptNumbers",
    "LayerCache",
    "LayerSettings",
    "ResidualLayer",
    "Stream",
    "StreamState",
    "TrainableRange",
    "UniformQuantizer",
    "Workspace",
    "choose",
    "compare_numbers",
    "count_macs",
    "cure_of",
    "dense_execution",
    "error_map",
    "evaluating",
    "executing",
    "failure_on",
    "fake_quantize",
    "fake_quantize_weight",
    "frame_to",
    "grid_dims",
    "image_of",
    "integer_range",
    "is_lowest",
    "is_news",
    "looks_like_pixels",
    "make_schedule",
    "mix",
    "numbers_are_settled",
    "pays",
    "quantize_to_integers",
    "refresh_groups",
    "relative_change",
    "residual_layers",
    "scale_from_range",
    "scene_threshold",
    "set_scene_threshold",
    "settle_lowest",
    "settled_numbers",
    "share_error",
    "shares_of",
    "stream",
    "telling_unfit_frames",
    "unusable_values",
    "weight_range",
    "weight_scale",
]
