"""Loggers that say less for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["only_errors"]


@contextmanager
def only_errors(name: str | None = None) -> Iterator[None]:
    """Let a logger, and those below it that have no level of their own, pass errors only.

    Args:
        name: of the logger; None is the root.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
