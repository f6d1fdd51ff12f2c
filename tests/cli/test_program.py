"""The command line: contract of ``resq cost``, and one clear line for every error of the user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from resq_plugin import __version__
from resq_plugin.cli import main

DDRNET = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
COST = ["cost", DDRNET, "--shape", "64", "128"]


def fails_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail by the user's fault, and return its one line."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert not captured.out
    return captured.err


def test_cost_writes_the_keys_of_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmseg")
    path = tmp_path / "new" / "cost.json"

    assert main([*COST, "--precision", "W8A8->W4A4", "--interval", "3", "--json", str(path)]) == 0

    values = json.loads(path.read_text())
    assert values["gbops_keyframe"] == pytest.approx(values["gmacs"] * 64)
    assert values["gbops_residual"] == pytest.approx(values["gmacs"] * 16)
    assert values["gbops_per_frame"] == pytest.approx(values["gmacs"] * 32)
    assert isinstance(values["state_bytes"], int)
    assert values["uncounted"]
    assert all(isinstance(line, str) for line in values["uncounted"])
    out = capsys.readouterr().out
    assert "backbone.stem" in out
    assert "Not counted: aten." in out


def test_cost_leaves_excluded_layers_in_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmseg")
    path = tmp_path / "cost.json"

    assert main([*COST, "--precision", "W8A8->W4A{0,4,8}", "--exclude", "*.conv_seg", "--json", str(path)]) == 0

    values = json.loads(path.read_text())
    assert values["float_layers"] == ["decode_head.conv_seg"]
    assert values["is_upper_bound"]
    assert "In float: decode_head.conv_seg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([*COST, "--precision", "W8A8=>W4A4"], "cannot read the precision 'W8A8=>W4A4'"),
        ([*COST, "--interval", "0"], "interval=0"),
        ([*COST, "--reference", "qantized"], "Did you mean 'quantized'"),
        ([*COST, "--depth", "-1"], "--depth -1"),
        ([*COST, "--interval", "three"], "--interval"),
        (["cost", DDRNET], "--shape"),
        (["cost", DDRNET, "--shape", "0", "128"], "(1, 3, 0, 128)"),
        (["cost", "nowhere.py", "--shape", "64", "128"], "no config file nowhere.py"),
        (["cost", "mmseg::nowhere.py", "--shape", "64", "128"], "mmseg has no config"),
        ([*COST, "--json", "/proc/nowhere/cost.json"], "cannot write /proc/nowhere/cost.json"),
        (["coost"], "coost"),
        ([], "COMMAND"),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)
def test_errors_of_the_user(capsys: pytest.CaptureFixture[str], argv: list[str], text: str) -> None:
    if any("::" in arg for arg in argv):
        pytest.importorskip("mmseg")
    assert text in fails_with(capsys, *argv)


@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["cost", "nowhere.py", "--shape", "64", "128"],
        ["eval", "nowhere.py", "--checkpoint", "nowhere.pth"],
        ["export", "nowhere.py", "--checkpoint", "nowhere.pth", "--out", "out", "--shape", "64", "128"],
        ["verify", "nowhere"],
        ["compare", "nowhere.py", "--checkpoint", "nowhere.pth", "--video", "nowhere.mp4"],
        ["search", "nowhere.py", "--checkpoint", "nowhere.pth", "--video", "nowhere.mp4", "--max-drop", "1"],
    ],
    ids=lambda command: command[0],
)
def test_a_json_file_that_cannot_be_written_is_refused_before_any_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resq_plugin.cli.commands.find_spec", lambda name: True)  # whatever is installed
    (tmp_path / "file").write_text("mine")
    for path, text in (
        (tmp_path, f"cannot write {tmp_path}: Is a directory; name a file in that folder, such as {tmp_path}/result"),
        (tmp_path / "file" / "x.json", "Not a directory; name a place in a folder you may write to"),
        (Path("/proc/nowhere/x.json"), "No such file or directory; name a place in a folder you may write to"),
    ):
        assert text in fails_with(capsys, *command, "--json", str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_compare_replaces_no_report_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmengine")
    (tmp_path / "report.html").write_text("mine")
    command = ["compare", "nowhere.py", "--checkpoint", "nowhere.pth", "--video", "nowhere.mp4", "--out"]
    assert "is there and no report of an earlier comparison" in fails_with(capsys, *command, str(tmp_path))
    assert "give --out a folder you may write to" in fails_with(capsys, *command, str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "text"), [(["--help"], "cost"), (["cost", "--help"], "--shape"), (["--version"], __version__)]
)
def test_help_and_version(capsys: pytest.CaptureFixture[str], argv: list[str], text: str) -> None:
    assert main(argv) == 0
    assert text in capsys.readouterr().out


def test_no_toolkit_is_imported_before_it_is_needed() -> None:
    code = "import sys, resq_plugin.cli as cli; cli.main(['cost', '--help']); assert 'mmengine' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
