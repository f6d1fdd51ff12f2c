"""What a config says of ResQ: the top-level ``resq = dict(...)``, or that of a `ResQModel`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resq_mmengine.search_settings import SearchSettings, read_search, without_found
from resq_plugin import ResQConfig
from resq_plugin.errors import ConfigError

__all__ = ["CalibrationClips", "Settings", "read_settings"]


@dataclass(frozen=True)
class CalibrationClips:
    """Where the clips come from that ranges are calibrated on.

    Attributes:
        dataset: config of a video dataset; None when only calibrated checkpoints are used.
        length: frames of a clip; T by default.
        step: frames from the start of one clip to the next; ``length`` by default.
    """

    dataset: Mapping[str, Any] | None = None
    length: int | None = None
    step: int | None = None


@dataclass(frozen=True)
class Settings:
    """The method's configuration and what only a runner needs.

    Attributes:
        config: the method.
        clips: where calibration clips come from.
        every_position: visit labelled frames at every position t <= T and average, as the paper does.
        search: what to find the configuration by, before it is there; ``config`` then has what is not found.
    """

    config: ResQConfig
    clips: CalibrationClips = CalibrationClips()
    every_position: bool = True
    search: SearchSettings | None = None


def read_settings(values: Mapping[str, Any] | None) -> Settings | None:
    """Read ``resq = dict(...)``; None, or ``enable=False`` in it, switches ResQ off.

    Besides the fields of `ResQConfig` it may hold ``every_position``, in ``calibration`` the fields of
    `CalibrationClips`, and ``search``, the fields of `SearchSettings`.

    Raises:
        ConfigError: unknown key or impossible value; the message names it under ``resq``.
    """
    if values is None:
        return None
    if not isinstance(values, Mapping):
        msg = f"resq={values!r} must be a dict such as resq = dict(precision='W8A8->W4A4', interval=3), or None."
        raise ConfigError(msg)
    values = _plain(values)
    if not values.pop("enable", True):
        return None
    if isinstance(values.get("precision"), list):  # --cfg-options splits W8A8->W4A{0,4,8} at its commas
        values["precision"] = ",".join(map(str, values["precision"]))
    every_position = values.pop("every_position", True)
    clips = {}
    if isinstance(calibration := values.get("calibration"), dict):
        clips = {key: calibration.pop(key) for key in ("dataset", "length", "step") if key in calibration}
    for key in ("length", "step"):
        if clips.get(key) is not None and (not isinstance(clips[key], int) or clips[key] < 1):
            msg = f"resq.calibration.{key}={clips[key]!r} must be a number of frames, e.g. resq.calibration.{key}=3."
            raise ConfigError(msg)
    try:
        search = read_search(values.pop("search", None))
        values = values if search is None else without_found(values)
        return Settings(ResQConfig.from_dict(values), CalibrationClips(**clips), every_position, search)
    except ConfigError as error:
        msg = f"resq of the config: {error}"
        raise ConfigError(msg) from error


def _plain(values: Any) -> Any:
    """Dicts and lists of their own, without MMEngine's classes and their ``_delete_`` marks."""
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items() if key != "_delete_"}
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return values
