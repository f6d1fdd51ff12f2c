"""What the user gives to export: frames, and how they are taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resq_plugin.config import ResQConfig
from resq_plugin.errors import ExportError
from resq_plugin.export.numbers import LayerNumbers

__all__ = ["as_clip", "check_length", "check_state", "warn_of_dead_weights"]

logger = logging.getLogger(__name__)

NAMED = 5
"""Layers that a message names."""


def as_clip(model: nn.Module, frames: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Frames (N, C, H, W) on the CPU.

    Args:
        model: on the CPU.
        frames: a clip (T, C, H, W) of one video, as in calibration, (T, N, C, H, W), or a list of (N, C, H, W).

    Raises:
        ExportError: other shapes or types, NaN or Inf, or a model elsewhere.
    """
    if isinstance(frames, Tensor):
        frames = list(frames.unsqueeze(1) if frames.dim() == 4 else frames)
    given: Sequence[object] = frames
    for frame in given:
        if not isinstance(frame, Tensor):
            name, hint = type(frame).__name__, ""
            if name == "ndarray":
                hint = " Write torch.from_numpy(frames) for an array (T, C, H, W) float32."
            msg = f"export takes tensors (N, C, H, W) float32; a frame is of type {name}.{hint}"
            raise ExportError(msg)
    clip = [frame.detach().cpu() for frame in frames]
    if not clip or any(f.dim() != 4 or f.dtype != torch.float32 or f.shape != clip[0].shape for f in clip):
        found = ", ".join(sorted({f"{tuple(f.shape)} {str(f.dtype).removeprefix('torch.')}" for f in clip}))
        msg = (
            f"export takes frames (N, C, H, W) float32 of one shape; got {found or 'none'}. Write a list of frames "
            "(N, C, H, W), or a clip (T, C, H, W)."
        )
        raise ExportError(msg)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        msg = f"the model is on {device}; export takes it from the CPU: model.cpu()."
        raise ExportError(msg)
    for index, frame in enumerate(clip):
        if not frame.isfinite().all():
            msg = f"frame {index} holds NaN or Inf; export takes frames as the model sees them in use."
            raise ExportError(msg)
    return clip


def check_length(clip: Sequence[Tensor]) -> None:
    """Refuse a clip in which nothing can move.

    Raises:
        ExportError: one frame.
    """
    if len(clip) == 1:
        batch = len(clip[0])
        msg = (
            f"the clip has one frame {tuple(clip[0].shape)}, on which no residual frame can be verified; give at "
            "least two consecutive frames, better ten: a list of (N, C, H, W), or a tensor (T, C, H, W)."
        )
        if batch > 1:
            msg += f" If these are {batch} frames of one video, pass the tensor itself, without a list around it."
        raise ExportError(msg)


def check_state(config: ResQConfig) -> None:
    """Refuse grids that are found anew at every keyframe, which no graph here measures.

    Raises:
        ExportError: x_k or z_k are kept in fewer bits.
    """
    state = config.state
    is_measured = config.reference != "quantized" or config.keyframe.pool[-1] > (state.reference_bits or 16)
    for key in ("reference_bits", "output_bits"):
        if getattr(state, key) is not None and (key == "output_bits" or is_measured):
            msg = (
                f"state.{key}={getattr(state, key)} has grids that a stream measures at every keyframe; graphs have "
                "none. Write state={}: QDQ graphs then keep floats (x_k in integers with reference='quantized'), and "
                "graphs for Qualcomm's HTP, htp=HtpConfig(...), keep all memory in 8 bits on grids of the clip."
            )
            raise ExportError(msg)


def warn_of_dead_weights(numbers: Mapping[str, LayerNumbers]) -> None:
    """Name the layers of whose residual weights more than half of the channels round to zero."""
    dead = {}
    for name, layer in numbers.items():
        weight = layer.weights.get("residual")
        if weight is None:
            continue
        alive, all_alive = (
            layer.weights[kind].values.flatten(1).count_nonzero(1).bool() for kind in ("residual", "keyframe")
        )
        share = float((~alive & all_alive).float().mean())
        if share > 0.5 and weight.grid.axis is None:
            dead[name] = share
    if dead:
        worst = sorted(dead, key=lambda name: -dead[name])[:NAMED]
        named = ", ".join(f"{name} ({100 * dead[name]:.0f} %)" for name in worst)
        logger.warning(
            "the residual weights of %d layers are zero in more than half of their channels, which then never change "
            "between keyframes: %s%s. One scale for the whole weight is too coarse here; convert with "
            "weights='channel', e.g. ResQConfig.parse(..., weights='channel').",
            len(dead),
            named,
            ", ..." if len(dead) > len(worst) else "",
        )
