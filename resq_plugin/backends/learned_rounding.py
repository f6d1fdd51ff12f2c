"""Weights of a layer that are not rounded to the nearest integer, and the bias that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ROUNDING_STATE", "LearnedRounding"]

CORRECTION = "bias_correction"
ROUNDINGS = {"keyframe": "keyframe_rounding", "residual": "residual_rounding"}
ROUNDING_STATE = (*ROUNDINGS.values(), CORRECTION)

FARTHEST = 127
"""Steps from the nearest integer that are kept, in one byte per weight."""


class LearnedRounding(nn.Module):
    """Mixin for a layer that holds, per path, how many steps from the nearest integer each of its weights is rounded.

    The float weights stay what they are, so float checkpoints fit and `revert` is exact. All are None, and in no state
    dict, as long as weights are rounded to the nearest.

    Attributes:
        keyframe_rounding: steps (int8), of the weight's shape.
        residual_rounding: the same for the residual path.
        bias_correction: what keyframes add to the bias, (C,).
    """

    keyframe_rounding: Tensor | None
    residual_rounding: Tensor | None
    bias_correction: Tensor | None
    weight: nn.Parameter

    def register_rounding(self) -> None:
        """Make place for it."""
        for key in ROUNDING_STATE:
            self.register_buffer(key, None)

    @property
    def may_learn_rounding(self) -> bool:
        """Whether this layer can hold it; where a toolkit quantizes the weights, it does not."""
        return CORRECTION in self._buffers

    def set_rounding(self, steps: Mapping[str, Tensor], correction: Tensor) -> None:
        """Round the weights of paths by that many steps beside the nearest integer.

        Args:
            steps: per path (``keyframe``, ``residual``), of the weight's shape, at most `FARTHEST` in magnitude.
            correction: what keyframes add to the bias, (C,).
        """
        for kind, key in ROUNDINGS.items():
            self._buffers[key] = steps[kind].to(torch.int8) if kind in steps else None
        self._buffers[CORRECTION] = correction

    def set_residual_rounding(self, steps: Tensor) -> None:
        """Round the weights of the residual path alone by other steps."""
        self._buffers[ROUNDINGS["residual"]] = steps.to(torch.int8)

    def forget_rounding(self) -> None:
        """Round every weight to the nearest again."""
        for key in ROUNDING_STATE:
            if key in self._buffers:
                self._buffers[key] = None

    def release_rounding(self) -> None:
        """Undo `register_rounding`."""
        for key in ROUNDING_STATE:
            self._buffers.pop(key, None)

    def steps_of(self, kind: str) -> Tensor | None:
        """Steps from the nearest integer of a path's weights, of the weight's shape; None if all are nearest."""
        return self._buffers.get(ROUNDINGS[kind])

    def corrected(self, bias: Tensor | None) -> Tensor | None:
        """The bias of keyframes."""
        correction = self._buffers.get(CORRECTION)
        if correction is None:
            return bias
        return correction if bias is None else bias + correction

    def is_forgotten(self, key: str) -> bool:
        """Whether a key of the state dict is one of these, and has no value."""
        return key in ROUNDING_STATE and self._buffers.get(key) is None

    def follow_state(self, state_dict: Mapping[str, Any], prefix: str, *, is_float: bool) -> None:
        """Have what a state dict that is about to be loaded has; a float one with other weights has none of it."""
        weight = state_dict.get(prefix + "weight")
        if is_float and isinstance(weight, Tensor) and not _are_equal(weight, self.weight):
            self.forget_rounding()
        for key in ROUNDING_STATE if self.may_learn_rounding and not is_float else ():
            theirs = state_dict.get(prefix + key)
            if theirs is None:
                self._buffers[key] = None
            elif self._buffers[key] is None:
                self._buffers[key] = torch.zeros_like(theirs, device=self.weight.device)


def _are_equal(theirs: Tensor, ours: Tensor) -> bool:
    if ours.is_meta or theirs.is_meta or theirs.shape != ours.shape:
        return False
    return bool((theirs.to(ours) == ours).all())
