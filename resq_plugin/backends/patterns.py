"""Patterns of layer names in a configuration that match nothing, or nothing of use."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from resq_plugin.config import ResQConfig
from resq_plugin.errors import ConfigError, nearest

__all__ = ["check_patterns"]

logger = logging.getLogger(__name__)


def check_patterns(config: ResQConfig, names: Collection[str]) -> None:
    """Refuse a pattern that matches no layer, or warn of it where it changes nothing.

    Whoever writes ``include``, ``overrides``, ``policy.thresholds`` or ``state.stateless`` wants certain layers to be
    quantized in a certain way; what matches nothing is a slip. One ``exclude`` may serve several networks, of which
    not all have the layer.

    Args:
        config: the configuration.
        names: qualified names of all layers that can be converted.

    Raises:
        ConfigError: the pattern, the nearest names, and what the layers are called.
    """
    for written, pattern in _wanted(config):
        if not any(fnmatchcase(name, pattern) for name in names):
            msg = (
                f"{written} matches no layer.{_nearest(pattern, names)} Layers are e.g. {', '.join(list(names)[:3])}."
            )
            raise ConfigError(msg)
        if not any(fnmatchcase(name, pattern) and config.selects(name) for name in names):
            logger.warning("%s has no effect: what it matches stays in float, by include or exclude", written)
    for pattern in config.exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            logger.warning("exclude pattern %r matches no layer.%s", pattern, _nearest(pattern, names))


def _wanted(config: ResQConfig) -> Iterator[tuple[str, str]]:
    """Patterns that must match, as they are written."""
    for pattern in config.include:
        yield f"include pattern {pattern!r}", pattern
    for pattern, text in config.overrides:
        yield f"overrides[{pattern!r}]={text!r}", pattern
    for pattern, threshold in config.policy.thresholds:
        yield f"policy.thresholds[{pattern!r}]={threshold!r}", pattern
    for pattern in config.state.stateless:
        yield f"state.stateless pattern {pattern!r}", pattern


def _nearest(pattern: str, names: Collection[str]) -> str:
    """Of layers and of modules that hold some, as patterns."""
    parts = [name.split(".") for name in names]
    modules = {".".join(part[:depth]) + ".*" for part in parts for depth in range(1, len(part))}
    return nearest(f"{pattern}.*" if f"{pattern}.*" in modules else pattern, [*names, *sorted(modules)])
