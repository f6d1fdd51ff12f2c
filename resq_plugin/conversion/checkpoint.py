"""Files: calibrated models and their ranges, written whole and read all or nothing."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from resq_plugin.config import ResQConfig
from resq_plugin.conversion.agreement import range_disagreement
from resq_plugin.conversion.converter import convert, float_state_dict, revert
from resq_plugin.conversion.matching import is_range_of, match_state, unwrap_state
from resq_plugin.conversion.reading import read_checkpoint
from resq_plugin.errors import CheckpointError, ConfigError
from resq_plugin.files import written
from resq_plugin.method import ResidualLayer, residual_layers, scene_threshold, set_scene_threshold

__all__ = ["checkpoint_config", "load", "load_checkpoint", "load_ranges", "save_checkpoint", "save_ranges"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

FORMAT_VERSION = 1


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a converted model: weights, ranges and configuration. The file appears whole or not at all.

    Folders above it are made.

    Raises:
        CheckpointError: it cannot be written; what was there is unchanged.
    """
    _write({"kind": "checkpoint", "state_dict": model.state_dict()}, model, path)


def save_ranges(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write only what calibration found, to be used with weights from elsewhere.

    Raises:
        CheckpointError: it cannot be written; what was there is unchanged.
    """
    weights = float_state_dict(model)
    ranges = {key: value for key, value in model.state_dict().items() if key not in weights}
    _write({"kind": "ranges", "state_dict": ranges}, model, path)


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file of `save_checkpoint`, or a float checkpoint, into a converted model.

    Float checkpoints are a state dict, or a dict with one under ``state_dict`` (as MMEngine writes), ``model`` or
    ``model_state_dict``; ranges then stay as they are. Known prefixes of names (``module.``, ``model.``, ``ema_``) are
    taken off with a warning. Files are read with ``weights_only=True``, those of MMEngine's training, too.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or of another model; the model is unchanged.
    """
    values = _read(path)
    if values.get("kind") == "ranges":
        msg = f"{path} holds ranges only; read it with load_ranges(model, path)."
        raise CheckpointError(msg)
    state = unwrap_state(values)
    if values.get("format") != "resq-plugin":
        layers = [
            name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, ResidualLayer)
        ]
        network, allowed = type(model).__name__, is_range_of(layers)
        match = match_state(state, float_state_dict(model), source=path, network=network, allowed=allowed)
        for notice in match.notices:
            logger.warning("%s: %s.", path, notice)
        state = match.state
    _apply(model, dict(state), values, path)


def load_ranges(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file of `save_ranges` into a converted model; its weights stay as they are.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or of another model; the model is unchanged.
    """
    values = _read(path)
    if values.get("kind") != "ranges" or not isinstance(values.get("state_dict"), dict):
        msg = f"{path} is no file of save_ranges(model, path); read a checkpoint with load_checkpoint(model, path)."
        raise CheckpointError(msg)
    _apply(model, {**float_state_dict(model), **values["state_dict"]}, values, path)


def checkpoint_config(path: str | os.PathLike[str]) -> ResQConfig:
    """The configuration that ranges in a file were found with: of `save_checkpoint`, `save_ranges` or MMEngine's hook.

    Raises:
        CheckpointError: the file is missing, truncated or of something else.
    """
    config = _settings_of(_read(path), path)
    if config is None:
        msg = (
            f"{path} holds no ranges and no configuration of them; write it with resq_plugin.save_checkpoint(model, "
            "path), resq compare or resq eval --work-dir DIR. A float checkpoint goes into a converted model: "
            "load_checkpoint(model, path)."
        )
        raise CheckpointError(msg)
    return config


def load(path: str | os.PathLike[str], model: M) -> M:
    """Convert a float model by the configuration that a calibrated file holds, and load weights and ranges.

    Args:
        path: of `save_checkpoint`, `resq_plugin.compare`, ``resq eval`` or MMEngine's hook.
        model: the float model, in place.

    Returns:
        The same model, calibrated.

    Raises:
        CheckpointError: the file is missing, truncated, holds no configuration or does not fit; the model is float.
        ConversionError: the model is converted already.
    """
    convert(model, checkpoint_config(path))
    try:
        load_checkpoint(model, path)
    except Exception:
        revert(model)
        raise
    return model


def _write(values: dict[str, Any], model: nn.Module, path: str | os.PathLike[str]) -> None:
    config = next(iter(residual_layers(model).values())).settings.config
    content = {"format": "resq-plugin", "version": FORMAT_VERSION, "config": config.to_dict(), **values}
    # As a file of Python's own, which keeps the reason when the disk is full.
    with written(path, CheckpointError) as part, part.open("wb") as file:
        torch.save(content, file)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    values = read_checkpoint(path)
    if values.get("format") == "resq-plugin" and values.get("version") != FORMAT_VERSION:
        msg = f"{path} has format version {values.get('version')}; this release reads version {FORMAT_VERSION}."
        raise CheckpointError(msg)
    return values


def _apply(model: nn.Module, state: dict[str, Tensor], values: dict[str, Any], path: Any) -> None:
    _check_settings(model, state, values, path)
    before, threshold = copy.deepcopy(model.state_dict()), scene_threshold(model)
    try:
        model.load_state_dict(state, strict=True)
    except Exception as error:
        model.load_state_dict(before, strict=True)
        set_scene_threshold(model, threshold)
        msg = f"{path} does not fit {type(model).__name__}; the model is unchanged. {error}"
        raise CheckpointError(msg) from error


def _check_settings(model: nn.Module, state: dict[str, Tensor], values: dict[str, Any], path: Any) -> None:
    """Raise unless the ranges in a file were found with the settings of the model; a float checkpoint has none."""
    layers = residual_layers(model)
    expected = next(iter(layers.values())).settings.config
    found = _settings_of(values, path)
    if found is None:
        if not (model.state_dict().keys() - float_state_dict(model).keys()).isdisjoint(state):
            logger.warning(
                "%s has ranges but does not say which settings they were found with; they are taken as ranges of %s, "
                "weights=%r, reference=%r, keyframe_grid=%r. save_checkpoint(model, path) writes the settings along.",
                *(path, expected.notation, expected.weights, expected.reference, expected.keyframe_grid),
            )
        return
    differing = range_disagreement(found, expected, layers)
    if differing is not None:
        msg = (
            f"{path} was calibrated with {differing.found}; here it is {differing.expected}. The model is unchanged. "
            f"Write {differing.line}, or load float weights and calibrate anew."
        )
        raise CheckpointError(msg)


def _settings_of(values: dict[str, Any], path: Any) -> ResQConfig | None:
    """The configuration in a file of `save_checkpoint`, `save_ranges` or MMEngine's hook; None if there is none."""
    meta = values.get("meta")
    if values.get("format") == "resq-plugin":
        config = values.get("config")
    elif isinstance(meta, dict) and meta.get("resq") is not None:
        config = meta["resq"]
    else:
        return None
    try:
        return ResQConfig.from_dict(config)  # type: ignore[arg-type]
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        msg = f"{path} has a configuration that this release cannot read ({error}). The model is unchanged."
        raise CheckpointError(msg) from error
