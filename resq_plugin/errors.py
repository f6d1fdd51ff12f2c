"""The exceptions a user can meet, all derived from `ResQError`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "ConversionError",
    "ExportError",
    "FoldingError",
    "FrameError",
    "MissingExtraError",
    "ReportError",
    "ResQError",
    "StreamError",
    "TrainingError",
    "VideoError",
    "nearest",
]


class ResQError(Exception):
    """Base of every error that resq-plugin raises on purpose."""


class ConfigError(ResQError, ValueError):
    """A setting is unknown, impossible or contradicts another one."""


class ConversionError(ResQError, TypeError):
    """A model, layer or backend cannot be converted."""


class CalibrationError(ResQError, RuntimeError):
    """Calibration data is unusable, or a model is used before its calibration."""


class FoldingError(ResQError, RuntimeError):
    """A layer that computes with its batch norm folded in is read by somebody else, or that batch norm is to change.

    No TypeError: the operators of Python would take one for "try the other operand".
    """


class FrameError(ResQError, ValueError):
    """A frame holds NaN or Inf, is none, or of a size or type that the model cannot take. The stream is unchanged."""


class StreamError(ResQError, RuntimeError):
    """A stream is used after it was closed, or its frames changed shape, type or device."""


class CheckpointError(ResQError, ValueError):
    """A file is truncated, foreign, of another model or cannot be written. Model and file are unchanged."""


class ExportError(ResQError, RuntimeError):
    """A model cannot be exported, or an exported folder is damaged or cannot be run."""


class MissingExtraError(ResQError, ImportError):
    """A package of an extra is not installed."""


class ReportError(ResQError, ValueError):
    """A figure or report cannot be made of these values, or not be written there."""


class TrainingError(ResQError, RuntimeError):
    """Training cannot go on: a loss or scale is no use any more. The last good checkpoint is kept."""


class VideoError(ResQError, ValueError):
    """A video file, a folder of frames or a camera cannot be read, or holds something else."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a hint such as ``" Did you mean 'interval'?"``, or an empty string."""
    matches = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
