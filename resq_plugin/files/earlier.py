"""Results of another run in the folder of a new one: kept in a folder of their own, and found there again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from resq_plugin.errors import ResQError
from resq_plugin.files.writing import telling

__all__ = ["set_aside"]

logger = logging.getLogger(__name__)


def set_aside(
    record: Path,
    others: Sequence[str],
    mark: str,
    mark_of: Callable[[Path], str | None],
    error: type[ResQError] = ResQError,
) -> None:
    """Make room for the results of a run: those of another go to ``earlier-MARK``, and its own come back from there.

    The record is moved last, so that a move that was cut off goes on the next time.

    Args:
        record: the file that tells whose results lie in its folder; it need not exist.
        others: patterns of the other files that belong to it, e.g. ``checkpoints/*.pth``.
        mark: of the run that begins.
        mark_of: reads the mark of a record, None where nothing is in it yet; raises ``error`` where it is no record.
        error: what is raised when files cannot be moved.
    """
    folder = record.parent
    with telling(folder, error):
        found = mark_of(record) if record.exists() else None
        if found is not None and found != mark:
            place = folder / f"earlier-{found}"
            _move(folder, place, (*others, record.name))
            logger.warning("%s holds results of another run (%s); they are in %s now", folder, record.name, place)
        place = folder / f"earlier-{mark}"
        if not record.exists() and (place / record.name).exists():
            _move(place, folder, (*others, record.name))
            for empty in (*(path for path in place.glob("*/") if path.is_dir()), place):
                with suppress(OSError):  # a user may have put more there
                    empty.rmdir()
            logger.warning("results of this run were in %s; it goes on there", place)


def _move(source: Path, target: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
