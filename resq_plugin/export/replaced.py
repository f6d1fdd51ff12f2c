"""What an export may replace: nothing but what an earlier one wrote, as it wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from resq_plugin.errors import ExportError
from resq_plugin.export.manifest import MANIFEST, changed_files, listed_files
from resq_plugin.export.specs import FileSpec
from resq_plugin.files import check_folder

__all__ = ["check_export_folder", "check_replaced"]

SHOWN = 3


def check_export_folder(folder: str | os.PathLike[str]) -> None:
    """Say before the work whether a folder can be written or replaced.

    Raises:
        ExportError: it cannot; the message tells why and what to write instead.
    """
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        msg = f"{folder} exists and is no folder; name a new one."
        raise ExportError(msg)
    check_folder(target.parent, ExportError)  # where it is written before it takes the place
    check_replaced(target)


def check_replaced(folder: Path) -> None:
    """Refuse a folder that holds anything that no export wrote, or that was changed since.

    Raises:
        ExportError: it does; the message names it.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    instead = f"name a new folder, such as {folder / 'export'}"
    ours = listed_files(folder)
    if ours is None:
        found = ", ".join(sorted(path.name for path in islice(folder.iterdir(), SHOWN)))
        msg = f"{folder} exists and is no earlier export: it holds {found}; {instead}, or empty this one."
        raise ExportError(msg)
    foreign = list(islice(_foreign(folder, ours), SHOWN))
    if foreign:
        msg = f"{folder} holds {', '.join(foreign)}, which no export wrote; {instead}, or move that away."
        raise ExportError(msg)
    changed = changed_files(folder, ours)
    if changed:
        msg = f"{folder / changed[0]} was changed since it was exported; {instead}, or delete it."
        raise ExportError(msg)


def _foreign(folder: Path, ours: Mapping[str, FileSpec]) -> Iterator[str]:
    """What lies in a folder beside these files and the manifest, in no order, without reading on when stopped."""
    files = {MANIFEST, *ours}
    folders = {parent.as_posix() for name in ours for parent in Path(name).parents} - {"."}
    for root, below, here in os.walk(folder):
        for name in (*below, *here):
            path = Path(root, name)
            relative = path.relative_to(folder).as_posix()
            known = folders if name in below else files
            if relative not in known or path.is_symlink() or not (path.is_dir() or path.is_file()):
                yield relative
        below[:] = [name for name in below if Path(root, name).relative_to(folder).as_posix() in folders]
