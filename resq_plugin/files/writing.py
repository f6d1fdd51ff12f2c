"""Files and folders that appear whole: what was there stays until its successor is complete.

Everything this package writes for a user goes through here. A file is written beside its place under a name of its
own, brought to the disk and renamed, so that neither a full disk, an interruption nor a second process that writes
the same path leaves half of it. Links stay links: what they name is written. A file that is replaced keeps its mode.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from resq_plugin.errors import ResQError

__all__ = [
    "check_file",
    "check_folder",
    "json_text",
    "telling",
    "write_json",
    "write_text",
    "written",
    "written_folder",
    "written_into",
]

Anywhere = str | os.PathLike[str]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST}
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_NUMBERED = ("/dev/fd", "/proc/self/fd")


@contextmanager
def written(path: Anywhere, error: type[ResQError] = ResQError) -> Iterator[Path]:
    """Give the path of an empty file to write, which takes the place of ``path`` when the block ends.

    Folders above it are made. If the block raises, ``path`` is as before.

    Args:
        path: the file; a link to one stays a link, and a device or pipe gets what was written.
        error: what is raised when it cannot be written.
    """
    with telling(path, error):
        if _is_stream(path):
            with tempfile.TemporaryDirectory() as folder:
                part = _new_file(Path(folder))
                yield part
                with part.open("rb") as source, _open_stream(Path(path)) as sink:
                    shutil.copyfileobj(source, sink)
            return
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _new_file(target.parent)
        try:
            yield part
            _sync(part)
            _take_after(target, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        _sync(target.parent)


def write_text(path: Anywhere, text: str, error: type[ResQError] = ResQError) -> None:
    """Write a text file in UTF-8, as `written` does."""
    with written(path, error) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Anywhere, values: Any, error: type[ResQError] = ResQError) -> None:
    """Write values as JSON, as `written` does; see `json_text`."""
    write_text(path, json_text(values, indent=1) + "\n", error)


def json_text(values: Any, indent: int | None = None) -> str:
    """Values as JSON; NaN and infinities, which JSON does not have, become null.

    >>> json_text({"accuracy": float("nan"), "gbops": 1.5})
    '{"accuracy": null, "gbops": 1.5}'
    """
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(values: Any) -> Any:
    """The same values with None in place of what is no number."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    return [_finite(value) for value in values] if isinstance(values, (list, tuple)) else values


@contextmanager
def written_into(folder: Anywhere, error: type[ResQError] = ResQError) -> Iterator[Path]:
    """Give an empty folder for files that belong into ``folder``; they are moved there when all are complete.

    Files of the same names are replaced, all others stay. If the block raises, ``folder`` is as before.
    """
    with telling(folder, error):
        target = Path(os.path.realpath(folder))
        target.mkdir(parents=True, exist_ok=True)
        part = target / _new_name()
        part.mkdir()
        try:
            yield part
            moves = {file: target / file.relative_to(part) for file in sorted(part.rglob("*")) if file.is_file()}
            for place in moves.values():
                _target(place)
            for file, place in moves.items():
                with written(place, error) as ready:
                    shutil.move(file, ready)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def written_folder(
    folder: Anywhere, check: Callable[[Path], None], error: type[ResQError] = ResQError
) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of ``folder`` as a whole when the block ends.

    Args:
        folder: what to write; a link to a folder stays a link.
        check: raises unless a folder that exists and is not empty may be deleted; called before the block and again
            before the exchange, with everything in its place.
        error: what is raised when it cannot be written.
    """
    with telling(folder, error):
        target = _folder_target(folder)
        if _is_occupied(target):
            check(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / _new_name()
        part.mkdir()
    try:
        with telling(folder, error, inside=part):
            yield part
        with telling(folder, error):
            for path in (*part.rglob("*"), part):
                _sync(path)
            _take_after(target, part)
            _exchange(part, target, check)
            _sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_file(path: Anywhere, error: type[ResQError] = ResQError) -> None:
    """Raise unless a file can be written there; leaves nothing behind."""
    with telling(path, error):
        if not _is_stream(path):
            _try(_target(path).parent)


def check_folder(folder: Anywhere, error: type[ResQError] = ResQError, option: str = "") -> None:
    """Raise unless files can be written into a folder of that name; leaves nothing behind."""
    advice = f"give {option} a folder you may write to" if option else ""
    with telling(folder, error, what="make the folder", advice=advice):
        _try(Path(os.path.realpath(folder)))


def _exchange(part: Path, target: Path, check: Callable[[Path], None]) -> None:
    """Let a folder take a place. Another process may do the same at any moment."""
    while True:
        try:
            part.replace(target)  # where nothing is, or an empty folder
        except OSError as failure:
            if failure.errno not in _OCCUPIED:
                raise
        else:
            return
        check(target)
        before = target.parent / _new_name()
        try:
            target.rename(before)
        except FileNotFoundError:
            continue
        try:
            part.replace(target)
        except BaseException as failure:
            if not _is_occupied(target):
                before.replace(target)
            if getattr(failure, "errno", None) not in _OCCUPIED:
                raise
        if before.exists():
            shutil.rmtree(before)
        if not part.exists():
            return


def _target(path: Anywhere) -> Path:
    """Where a file is really written, behind all links."""
    target = Path(os.path.realpath(path))
    reason = None
    if target.is_symlink():
        reason = errno.ELOOP
    elif target.is_dir():
        reason = errno.EISDIR
    elif target.exists() and not os.access(target, os.W_OK):
        reason = errno.EACCES
    if reason is not None:
        raise OSError(reason, os.strerror(reason), str(target))
    return target


def _folder_target(folder: Anywhere) -> Path:
    target = Path(os.path.realpath(folder))
    reason = None
    if target.is_symlink():
        reason = errno.ELOOP
    elif _is_file(target):
        reason = errno.ENOTDIR
    elif Path.cwd().is_relative_to(target):
        reason = errno.EBUSY
    if reason is not None:
        raise OSError(reason, os.strerror(reason), str(target))
    return target


def _is_file(path: Path) -> bool:
    """Whether something is there that is no folder, at one moment: another process may exchange folders meanwhile."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_stream(path: Anywhere) -> bool:
    """Whether it is a device, a pipe or an open file of this process: written as it is, not replaced."""
    target = Path(path)
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _handle(target) is not None


def _handle(path: Path) -> int | None:
    """The number of the open file that a path stands for."""
    if str(path.parent) in _NUMBERED and path.name.isdecimal():
        return int(path.name)
    return _STANDARD.get(str(path))


def _open_stream(path: Path) -> IO[bytes]:
    handle = _handle(path)  # opened once more by its name, a file would be written from its start
    return path.open("ab") if handle is None else os.fdopen(os.dup(handle), "wb")


def _is_occupied(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:  # another process may exchange it at this moment
        return False


def _new_name() -> str:
    return f".resq-{os.urandom(8).hex()}.part"


def _new_file(folder: Path) -> Path:
    """An empty file of a name that nobody has, with the mode that the umask gives."""
    part = folder / _new_name()
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return part


def _try(folder: Path) -> None:
    """Make a file in a folder, or in what exists above it, and remove it."""
    while not os.path.lexists(folder):
        folder = folder.parent
    _new_file(folder).unlink()


def _take_after(before: Path, part: Path) -> None:
    """Give what replaces a file or a folder its owner and mode, as far as the system lets us."""
    try:
        old = before.stat()
    except FileNotFoundError:
        return
    with suppress(OSError):
        os.chown(part, old.st_uid, old.st_gid)
    with suppress(OSError):
        part.chmod(stat.S_IMODE(old.st_mode))


def _sync(path: Path) -> None:
    """Bring a file or the names in a folder to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # may be written without being read
            return
        raise
    try:
        os.fsync(handle)
    except OSError as failure:
        if failure.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        os.close(handle)


@contextmanager
def telling(
    path: Anywhere, error: type[ResQError], *, inside: Path | None = None, what: str = "write", advice: str = ""
) -> Iterator[None]:
    """Say of errors of the system what could not be written; with ``inside`` only of those of files in there."""
    try:
        yield
    except ResQError:
        raise
    except (OSError, RuntimeError) as failure:
        reason = _reason(failure)
        if reason is None or (inside is not None and not _concerns(reason, inside)):
            raise
        msg = f"cannot {what} {path}: {reason.strerror or reason}; {advice or _advice(Path(path), reason)}."
        raise error(msg) from failure


def _reason(failure: BaseException | None) -> OSError | None:
    """The error of the system behind an error; libraries hide it behind one of their own."""
    while failure is not None and not isinstance(failure, OSError):
        failure = failure.__context__
    return failure


def _concerns(failure: OSError, folder: Path) -> bool:
    if failure.filename is None:
        return failure.errno in _FULL
    return Path(os.fsdecode(failure.filename)).is_relative_to(folder)


def _advice(path: Path, reason: OSError) -> str:
    if reason.errno in _FULL:
        return "free some space there, or name another disk; what was there is unchanged"
    if reason.errno == errno.EISDIR:
        return f"name a file in that folder, such as {path / 'result'}"
    if reason.errno == errno.EBUSY:
        return f"it is in use and cannot be replaced as a whole; name a folder inside it, such as {path / 'new'}"
    return "name a place in a folder you may write to"
