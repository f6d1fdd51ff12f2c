"""What is written appears whole, in the right place, or not at all; and one line tells why not."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resq_plugin import calibrate, convert, load_checkpoint, save_checkpoint, save_ranges
from resq_plugin.cli import write_json
from resq_plugin.errors import CheckpointError, ExportError, ReportError, ResQError
from resq_plugin.files import check_file, check_folder, write_text, written, written_folder, written_into

OLD = "the earlier result"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fill(place: AbstractContextManager[Path], *files: str) -> None:
    """Write files that hold their names."""
    with place as part:
        for name in files:
            (part / name).write_text(name)


def fails_half_way(place: AbstractContextManager[Path], failure: BaseException) -> None:
    with place as part:
        (part / "half" if part.is_dir() else part).write_text("half")
        raise failure


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3)), "W8A8->W4A4")
    calibrate(model, [torch.randn(3, 3, 8, 8)])
    return model


# --- one file -------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "result.txt"
    with written(path) as part:
        assert part.parent == path.parent
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with written(path) as part:
        part.write_text("newer")
        assert path.read_text() == "new"
    assert path.read_text() == "newer"
    assert names(tmp_path) == ["a", "a/b", "a/b/result.txt"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "result.txt"
    path.write_text(OLD)
    expected = ResQError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected):
        fails_half_way(written(path), failure)
    assert path.read_text() == OLD
    assert names(tmp_path) == ["result.txt"]


def test_what_was_written_is_on_the_disk_before_it_takes_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, Any]] = []
    fsync, replace = os.fsync, Path.replace

    def watched(self: Path, target: Path) -> Path:
        done.append(("replace", os.stat(self).st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(("fsync", os.fstat(handle).st_ino)), fsync(handle)))
    monkeypatch.setattr(Path, "replace", watched)
    write_text(tmp_path / "x", "text")
    file, folder = (tmp_path / "x").stat().st_ino, tmp_path.stat().st_ino
    assert done == [("fsync", file), ("replace", file), ("fsync", folder)]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask_and_a_replaced_one_keeps_its_own(tmp_path: Path, mask: int) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    before = os.umask(mask)
    try:
        write_text(tmp_path / "new", "x")
        (tmp_path / "old").write_text(OLD)
        (tmp_path / "old").chmod(0o640)
        write_text(tmp_path / "old", "x")
    finally:
        os.umask(before)
    assert mode("new") == 0o666 & ~mask
    assert mode("old") == 0o640


def test_a_link_stays_a_link_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "v1.json").write_text(OLD)
    (tmp_path / "latest.json").symlink_to("data/v1.json")
    (tmp_path / "next.json").symlink_to("data/v2.json")  # names nothing yet
    write_text(tmp_path / "latest.json", "one")
    write_text(tmp_path / "next.json", "two")
    assert (tmp_path / "latest.json").readlink() == Path("data/v1.json")
    assert (tmp_path / "data" / "v1.json").read_text() == "one"
    assert (tmp_path / "next.json").is_symlink()
    assert (tmp_path / "data" / "v2.json").read_text() == "two"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ResQError, match=r"cannot write .*circle: Too many levels of symbolic links"):
        write_text(tmp_path / "circle", "x")


def test_devices_and_pipes_get_what_is_written() -> None:
    reader, writer = os.pipe()
    try:
        write_text(f"/proc/self/fd/{writer}", "through a pipe")
        assert os.read(reader, 100) == b"through a pipe"
    finally:
        os.close(reader)
        os.close(writer)
    write_text("/dev/null", "gone")
    with pytest.raises(ReportError, match=r"^cannot write /dev/full: No space left on device; free some space there"):
        write_text("/dev/full", "x" * 10**6, ReportError)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_json_on_a_redirected_standard_output_does_not_swallow_the_rest(tmp_path: Path) -> None:
    code = (
        "from resq_plugin.files import write_text; print('before', flush=True); "
        "write_text('/dev/stdout', 'json\\n'); print('after')"
    )
    with (tmp_path / "out").open("w") as file:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=file)
    assert (tmp_path / "out").read_text() == "before\njson\nafter\n"


def test_writers_of_the_same_path_do_not_meet(tmp_path: Path) -> None:
    """Every text that can be read at any time is one that somebody wrote, whole."""
    path, stop, seen = tmp_path / "result", threading.Event(), set()
    texts = [letter * 50_000 for letter in "abcd"]
    failures: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(15):
                write_text(path, text)
        except BaseException as failure:
            failures.append(failure)

    def read() -> None:
        while not stop.is_set():
            if path.exists():
                seen.add(path.read_text())

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(t,)) for t in texts]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not failures
    assert seen <= set(texts)
    assert path.read_text() in texts
    assert names(tmp_path) == ["result"]


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a folder": (lambda root: root, r"Is a directory; name a file in that folder, such as .*/result\."),
    "below a file": (lambda root: root / "file" / "x.json", "(Not a directory|File exists); name a place in a folder"),
    "below a file, deep": (lambda root: root / "file" / "a" / "x.json", "Not a directory; name a place in a folder"),
    "no real folder": (lambda root: Path("/proc/nowhere/x.json"), "No such file or directory; name a place"),
}


@pytest.mark.parametrize("place", list(PLACES))
def test_a_place_that_cannot_be_written_is_told_in_advance_and_when_it_is_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(OLD)
    make, text = PLACES[place]
    path = make(tmp_path)
    for attempt in (check_file, lambda path: write_text(path, "x")):
        with pytest.raises(ResQError, match=f"^cannot write {path}: {text}") as caught:
            attempt(path)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == OLD
    assert names(tmp_path) == ["file"]


def test_a_folder_or_file_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result"
    path.write_text(OLD)
    access, open_file = os.access, os.open
    with monkeypatch.context() as patch:  # the tests may run as root, who may do everything
        patch.setattr(os, "access", lambda where, mode: Path(where) != path and access(where, mode))
        for attempt in (check_file, lambda path: write_text(path, "x")):
            with pytest.raises(ResQError, match="result: Permission denied; name a place in a folder you may write"):
                attempt(path)

    def refuse(where: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", str(where))
        return open_file(where, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    for attempt in (check_file, check_folder, lambda path: write_text(path, "x")):
        with pytest.raises(ResQError, match=r"new: Permission denied; name a place in a folder you may write to\."):
            attempt(tmp_path / "new")
    assert path.read_text() == OLD
    assert names(tmp_path) == ["result"]


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "there").write_text(OLD)
    check_file(tmp_path / "there")
    check_file(tmp_path / "a" / "b" / "new")
    check_folder(tmp_path / "a" / "b")
    check_folder(tmp_path)
    check_file("/dev/stdout")
    assert names(tmp_path) == ["there"]
    with pytest.raises(ReportError, match=r"cannot make the folder .*there: Not a directory; give --out a folder"):
        check_folder(tmp_path / "there", ReportError, "--out")


# --- every writer on a full disk ------------------------------------------------------------------------------------


def save_figure(path: Path) -> None:
    pytest.importorskip("matplotlib")
    from resq_plugin.report import Series, accuracy_by_distance

    accuracy_by_distance([Series("a", "resq", [80, 79])], path)


def save_report(path: Path) -> None:
    pytest.importorskip("jinja2")
    from resq_plugin.report import write_report

    row = {"scheme": "resq", "precision": "W8A8->W4A4", "interval": 3, "accuracy": 1.0, "metric": "mIoU"}
    values = {"agreement": 1.0, "gbops_per_frame": 1.0, "relative_bops": 1.0}
    write_report(path, "Title", [row | values], [], {})


def save_film(path: Path) -> None:
    pytest.importorskip("av")
    from resq_plugin.report import write_film

    frames = list(torch.randint(0, 255, (8, 3, 64, 64), dtype=torch.uint8))
    write_film(path, {"a": frames})


def save_strip(path: Path) -> None:
    pytest.importorskip("PIL")
    from resq_plugin.report import write_strip

    frames = list(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
    write_strip(path, {"a": frames}, [0, 1])


WRITERS: dict[str, tuple[Callable[[Path], None], type[ResQError]]] = {
    "checkpoint": (lambda path: save_checkpoint(small_model(), path), CheckpointError),
    "ranges": (lambda path: save_ranges(small_model(), path), CheckpointError),
    "json": (lambda path: write_json(path, {"values": list(range(10_000))}), ResQError),
    "figure": (save_figure, ReportError),
    "film": (save_film, ReportError),
    "strip": (save_strip, ReportError),
    "report": (save_report, ReportError),
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_full_disk_leaves_the_earlier_result(writer: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    write, error = WRITERS[writer]
    path = tmp_path / "result.png"
    write(path)  # what it loads and makes of its own is there now
    path.write_text(OLD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # writing more is an error, as on a full disk
    try:
        with pytest.raises(error) as caught:
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == (
        f"cannot write {path}: File too large; free some space there, or name another disk; "
        "what was there is unchanged."
    )
    assert path.read_text() == OLD
    assert names(tmp_path) == ["result.png"]


def test_a_checkpoint_behind_a_link_is_written_there(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "latest.pth").symlink_to("store/1.pth")
    model = small_model()
    save_checkpoint(model, tmp_path / "latest.pth")
    assert (tmp_path / "latest.pth").is_symlink()
    assert not (tmp_path / "store" / "1.pth").is_symlink()
    load_checkpoint(model, tmp_path / "store" / "1.pth")


def test_values_that_are_no_json_leave_the_earlier_result(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


# --- files into a folder --------------------------------------------------------------------------------------------


def test_files_are_moved_when_all_are_complete_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    for name in ("mine.txt", "sub/a", "b"):
        (tmp_path / "out" / name).write_text(OLD)
    (tmp_path / "elsewhere").write_text(OLD)
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no"):
        fails_half_way(written_into(tmp_path / "out"), ValueError("no"))
    assert (tmp_path / "out" / "b").read_text() == OLD
    with written_into(tmp_path / "out") as part:
        (part / "sub").mkdir()
        for name in ("sub/a", "b", "link", "sub/new"):
            (part / name).write_text(name)
    assert names(tmp_path / "out") == ["b", "link", "mine.txt", "sub", "sub/a", "sub/new"]
    assert (tmp_path / "out" / "mine.txt").read_text() == OLD
    assert (tmp_path / "out" / "link").is_symlink()
    for name in ("sub/a", "b", "link", "sub/new"):
        assert (tmp_path / "out" / name).read_text() == name


def test_nothing_is_moved_when_one_place_is_taken_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    with pytest.raises(ResQError, match="Is a directory"):
        fill(written_into(tmp_path), "a", "z")
    assert names(tmp_path) == ["z"]


# --- a folder as a whole --------------------------------------------------------------------------------------------


def anything(folder: Path) -> None:
    pass


def test_a_folder_takes_the_place_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    for text in ("one", "two"):
        with written_folder(target, anything) as part:
            assert part.parent == target.parent
            (part / text).write_text(text)
            assert not (target / text).exists()
        assert names(target) == [text]
    target.chmod(0o750)
    with written_folder(target, anything) as part:
        (part / "three").write_text("three")
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert names(tmp_path / "deep") == ["out", "out/three"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "out").mkdir()
    (tmp_path / "out").symlink_to("disk/out")
    (tmp_path / "new").symlink_to("disk/new")
    for name in ("out", "new"):
        with written_folder(tmp_path / name, anything) as part:
            assert part.parent == tmp_path / "disk"
            (part / "x").write_text("x")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / name / "x").read_text() == "x"


def test_a_folder_is_kept_when_the_block_fails_or_it_may_not_be_deleted(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text(OLD)

    def refuse(folder: Path) -> None:
        assert folder == target
        raise ExportError("holds mine")

    with pytest.raises(ExportError, match="holds mine"), written_folder(target, refuse):
        pytest.fail("refused before the block")
    with pytest.raises(ValueError, match="no"):
        fails_half_way(written_folder(target, anything), ValueError("no"))
    answers = iter([anything, refuse])  # somebody puts a file there in the meantime

    def ask(folder: Path) -> None:
        next(answers)(folder)

    with pytest.raises(ExportError):
        fill(written_folder(target, ask), "x")
    assert names(tmp_path) == ["out", "out/mine"]
    assert (target / "mine").read_text() == OLD


def test_a_folder_is_put_back_when_its_successor_cannot_take_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = tmp_path / "out", Path.replace
    target.mkdir()
    (target / "x").write_text(OLD)

    def fails_once_the_place_is_free(self: Path, place: Path) -> Path:
        if not place.exists() and (self / "y").exists():
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, place)

    monkeypatch.setattr(Path, "replace", fails_once_the_place_is_free)
    with (
        pytest.raises(ExportError, match=r"cannot write .*out: Input/output error"),
        written_folder(target, anything, ExportError) as part,
    ):
        (part / "y").write_text("y")
    assert names(tmp_path) == ["out", "out/x"]


def test_errors_inside_are_told_only_when_they_are_of_the_writing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(FileNotFoundError), written_folder(target, anything, ExportError):
        (tmp_path / "nowhere").read_text()
    with (
        pytest.raises(ExportError, match=r"cannot write .*out: No space left on device; free some space"),
        written_folder(target, anything, ExportError) as part,
        (part / "x").open("w"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda root: root / "file", "Not a directory; name a place in a folder you may write to"),
        (lambda root: root / "file" / "out", "(Not a directory|File exists); name a place"),
        (lambda root: Path(), r"Device or resource busy; .* name a folder inside it, such as new\."),
        (lambda root: Path("/"), "Device or resource busy"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told(
    make: Callable[[Path], Path], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text(OLD)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = make(tmp_path)
    with (
        pytest.raises(ExportError, match=f"^cannot write {folder}: {text}"),
        written_folder(folder, anything, ExportError),
    ):
        pytest.fail("refused before the block")
    assert names(tmp_path) == ["file", "here"]


def test_processes_that_write_the_same_folder_leave_a_whole_one(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from resq_plugin.files import written_folder\n"
        "for _ in range(40):\n"
        "    with written_folder(sys.argv[1], lambda folder: None) as part:\n"
        "        for name in 'ab':\n"
        "            (part / name).write_text(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    runs = [subprocess.Popen([*command, text], stderr=subprocess.PIPE, text=True) for text in ("one", "two")]
    for run in runs:
        _, error = run.communicate(timeout=120)
        assert run.returncode == 0, error
    assert names(tmp_path) == ["out", "out/a", "out/b"]
    assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out" / "b").read_text()
