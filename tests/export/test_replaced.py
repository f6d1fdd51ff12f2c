"""Nothing but what an earlier export wrote, as it wrote it, is ever replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import build, video

from resq_plugin.cli import main
from resq_plugin.errors import ExportError
from resq_plugin.export import check_export_folder, export_model, verify
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.replaced import check_replaced


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file with what it holds, and every folder and link."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "out"
    export_model(build("plain"), video(2), folder, encodings=("1.0.0",))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "out"))


def web_project(folder: Path) -> None:
    """As a progressive web app has it."""
    (folder / ".git").mkdir(parents=True)
    (folder / "src").mkdir()
    (folder / "manifest.json").write_text('{"name": "app", "icons": [], "files": {"src/app.js": {}}}')
    (folder / "src" / "app.js").write_text("words")


def add(name: str, content: str = "mine") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return change


def replace_by_link(folder: Path) -> None:
    shutil.move(folder / "golden.npz", folder.parent / "kept.npz")
    (folder / "golden.npz").symlink_to(folder.parent / "kept.npz")


def replace_folder_by_link(folder: Path) -> None:
    shutil.move(folder / "encodings", folder.parent / "kept")
    (folder / "encodings").symlink_to(folder.parent / "kept")


ADDED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file": (add("notes.txt"), r"holds notes\.txt, which no export wrote; name a new folder, such as .*/out/export"),
    "a hidden file": (add(".env"), r"holds \.env, which no export wrote"),
    "a file in a folder of ours": (add("encodings/mine.json"), r"holds encodings/mine\.json, which no export wrote"),
    "a folder": (lambda folder: (folder / "results").mkdir(), "holds results, which no export wrote"),
    "a repository": (add(".git/HEAD"), r"holds .*\.git.*, which no export wrote"),
    "a link": (lambda folder: (folder / "data").symlink_to("/"), "holds data, which no export wrote"),
    "a link in the place of a file": (replace_by_link, r"holds golden\.npz, which no export wrote"),
    "a link in the place of a folder": (replace_folder_by_link, "holds encodings, which no export wrote"),
    "a changed graph": (add("residual.onnx"), r"residual\.onnx was changed since it was exported; name a new folder"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "holds pipe, which no export wrote"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "exists and is no earlier export: it holds"),
    "a damaged manifest": (add("manifest.json", "{"), "exists and is no earlier export: it holds"),
    "a manifest of something else": (add("manifest.json", '{"files": {}}'), "exists and is no earlier export"),
    "a manifest with files of another kind": (
        add("manifest.json", '{"format": "resq-plugin export", "files": ["golden.npz"]}'),
        "exists and is no earlier export",
    ),
}


@pytest.mark.parametrize("name", list(ADDED))
def test_a_folder_with_anything_else_is_refused_before_any_work(name: str, folder: Path) -> None:
    change, text = ADDED[name]
    change(folder)
    before = tree(folder.parent)

    def no_work(*_: object) -> torch.Tensor:
        return pytest.fail("refused before the model runs")

    model = build("plain")
    model.register_forward_pre_hook(no_work)
    for attempt in (lambda: check_export_folder(folder), lambda: export_model(model, video(2), folder)):
        with pytest.raises(ExportError, match=text):
            attempt()
    assert tree(folder.parent) == before


def test_a_web_project_stays(tmp_path: Path) -> None:
    web_project(tmp_path / "webapp")
    before = tree(tmp_path)
    with pytest.raises(
        ExportError,
        match=r"webapp exists and is no earlier export: it holds .*; name a new folder, such as .*/webapp/",
    ):
        export_model(build("plain"), video(2), tmp_path / "webapp")
    assert tree(tmp_path) == before


def test_the_command_refuses_it_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmseg")
    from resq_plugin import save_checkpoint

    web_project(tmp_path / "webapp")
    save_checkpoint(build("plain"), tmp_path / "calibrated.pth")
    command = ["export", "nowhere.py", "--checkpoint", str(tmp_path / "calibrated.pth"), "--shape", "8", "8", "--out"]
    assert main([*command, str(tmp_path / "webapp")]) == 2
    error = capsys.readouterr().err
    assert "webapp exists and is no earlier export" in error
    assert error.count("\n") == 1
    assert main([*command, str(tmp_path / "new"), "--json", str(tmp_path / "new" / "export.json")]) == 2
    assert "which is replaced as a whole; name a file beside it" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "calibrated.pth")]) == 2
    assert "calibrated.pth exists and is no folder; name a new one" in capsys.readouterr().err
    assert (tmp_path / "webapp" / "src" / "app.js").read_text() == "words"


def test_an_earlier_export_is_replaced_whatever_is_missing_of_it(folder: Path) -> None:
    (folder / "keyframe.onnx").unlink()
    shutil.rmtree(folder / "encodings")
    check_replaced(folder)
    export_model(build("plain"), video(2), folder, encodings=())
    assert {*Manifest.read(folder).files} == {"keyframe.onnx", "residual.onnx", "golden.npz", "parts.npz"} | {
        f"encodings/{graph}.onnx" for graph in ("keyframe", "residual")
    }
    assert set(tree(folder)) == {*Manifest.read(folder).files, "encodings", "manifest.json"}
    assert verify(folder).passed
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_an_export_of_another_format_version_is_ours_too(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(values | {"version": 0, "graphs": None}))
    check_replaced(folder)


def test_an_empty_folder_is_filled_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk/real")
    for _ in range(2):
        export_model(build("plain"), video(2), tmp_path / "out", encodings=())
        assert (tmp_path / "out").readlink() == Path("disk/real")
        assert verify(tmp_path / "out").passed
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


def test_what_is_added_during_the_export_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resq_plugin.export import folder as module

    golden = module.golden_clip

    def slow(*args: Any) -> Any:
        (folder / "notes.txt").write_text("mine")
        return golden(*args)

    monkeypatch.setattr(module, "golden_clip", slow)
    before = tree(folder)
    with pytest.raises(ExportError, match=r"holds notes\.txt, which no export wrote"):
        export_model(build("plain"), video(2), folder)
    assert tree(folder) == before | {"notes.txt": b"mine"}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_a_full_disk_leaves_the_earlier_export(folder: Path) -> None:
    resource = pytest.importorskip("resource")
    before, limit = tree(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    model = build("plain")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(ExportError, match=r"^cannot write .*/out: File too large; free some space there"):
            export_model(model, video(2), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert tree(folder.parent) == {"out": None} | {f"out/{name}": content for name, content in before.items()}


def test_frames_that_are_none_are_told(tmp_path: Path) -> None:
    frames = video(2)
    frames[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(ExportError, match="frame 1 holds NaN or Inf"):
        export_model(build("plain"), frames, tmp_path / "out")
    assert not list(tmp_path.iterdir())
