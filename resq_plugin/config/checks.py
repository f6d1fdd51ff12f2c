"""Checks of single settings; what fails names the key, the value and what to write."""

from __future__ import annotations

from collections.abc import Sequence

from resq_plugin.errors import ConfigError, nearest

__all__ = ["at_least", "check_patterns", "check_threshold", "choice"]


def choice(key: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of those."""
    if value not in allowed:
        hint = nearest(str(value), allowed)
        msg = f"{key}={value!r} is not allowed; write one of {', '.join(map(repr, allowed))}.{hint}"
        raise ConfigError(msg)


def at_least(key: str, value: object, low: int) -> None:
    """Refuse what is no whole number, or a smaller one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        msg = f"{key}={value!r} is not allowed; write a whole number of at least {low}."
        raise ConfigError(msg)


def check_threshold(key: str, value: object) -> None:
    """Refuse what is no finite number of at least 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        msg = f"{key}={value!r} is not allowed; write a number of at least 0, e.g. 0.1."
        raise ConfigError(msg)


def check_patterns(config: object, key: str, shown: str) -> None:
    """Refuse what is no list of texts, and make it a tuple, of the field ``key`` of a frozen configuration."""
    patterns = getattr(config, key)
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(pattern, str) for pattern in patterns):
        own = shown.rsplit(".", 1)[-1]
        msg = f"{shown}={patterns!r} must be a list of patterns, e.g. {own}=('auxiliary_head.*',)."
        raise ConfigError(msg)
    object.__setattr__(config, key, tuple(patterns))
