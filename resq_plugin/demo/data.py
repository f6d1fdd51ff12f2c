"""What the demo runs on: clips for calibration, and other videos for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resq_plugin.demo.decode import decode_video
from resq_plugin.demo.video import SceneConfig, generate_clip

__all__ = ["DemoData", "procedural_data", "video_data"]

_CALIBRATION_SEED, _EVALUATION_SEED = 100, 200
_CLIP = 4


@dataclass(frozen=True)
class DemoData:
    """Videos of one resolution.

    Attributes:
        name: what the report calls them.
        calibration: clips (T, 3, H, W).
        videos: frames (T, 3, H, W) each.
        labels: classes (T, H, W) of each video; None when nobody knows them.
    """

    name: str
    calibration: list[Tensor]
    videos: list[Tensor]
    labels: list[Tensor] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame, (1, 3, H, W)."""
        return (1, *self.videos[0].shape[1:])


def procedural_data(videos: int, frames: int, calibration_clips: int) -> DemoData:
    """Render labelled scenes, half with a still and half with a panning camera.

    Args:
        videos: number of scenes to evaluate on.
        frames: of each.
        calibration_clips: number of clips of four frames, of scenes of their own.
    """
    calibration = [_scene(_CALIBRATION_SEED + index, _CLIP)[0] for index in range(calibration_clips)]
    scenes = [_scene(_EVALUATION_SEED + index, frames) for index in range(videos)]
    name = f"{videos} procedural scenes of {frames} frames, still and panning camera"
    return DemoData(name, calibration, [scene[0] for scene in scenes], [scene[1] for scene in scenes])


def video_data(path: Path, frames: int, calibration_frames: int) -> DemoData:
    """Read a video without labels: its beginning calibrates, the rest is evaluated.

    A video too short to be parted so serves for both.

    Args:
        path: the file.
        frames: to evaluate at most.
        calibration_frames: to calibrate on at most.

    Raises:
        VideoError: the file holds no video of at least two frames.
    """
    clip = decode_video(path, frames + calibration_frames)
    part = min(calibration_frames, len(clip) // 3)
    is_short = part < _CLIP
    before, rest = (clip, clip) if is_short else (clip[:part], clip[part:])
    clips = [before[start : start + _CLIP] for start in range(0, len(before) - 1, _CLIP)]
    name = f"{path.name}, {len(rest)} frames" + (
        ", also calibrated on" if is_short else f" after {part} for calibration"
    )
    return DemoData(name, clips, [rest], None)


def _scene(seed: int, frames: int) -> tuple[Tensor, Tensor]:
    return generate_clip(SceneConfig(camera="pan" if seed % 2 else "still", seed=seed), frames)
