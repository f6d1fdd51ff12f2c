"""Commands come by entry point; what a command lacks is told before it runs, and costs nothing until then."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from resq_plugin.cli import commands, main
from resq_plugin.cli.commands import GROUP


def test_our_own_commands_are_entry_points(capsys: pytest.CaptureFixture[str]) -> None:
    names = {entry.name for entry in commands.entry_points(group=GROUP)}
    assert {"demo", "cost", "eval", "export", "verify", "configs"} <= names
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.split("COMMAND")[-1]
    assert all(name in listed for name in names)
    assert "needs:" not in listed


def installed(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    entries = [EntryPoint(name, value, GROUP) for name, value in found.items()]
    monkeypatch.setattr(commands, "entry_points", lambda group: entries if group == GROUP else [])


def test_a_third_package_brings_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "third_package.py").write_text(
        "from resq_plugin.cli import add_command\n"
        "def add(commands):\n"
        "    parser = add_command(commands, 'greet', help='say hello', description='Say hello.')\n"
        "    parser.add_argument('name')\n"
        "    parser.set_defaults(run=lambda args, console: print('hello', args.name) or 0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(monkeypatch, greet="third_package:add")
    assert main(["--help"]) == 0
    assert "say hello" in capsys.readouterr().out
    assert main(["greet", "Ann"]) == 0
    assert capsys.readouterr().out == "hello Ann\n"


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    def find(name: str) -> Any:
        return None if name in packages else importlib.util.find_spec(name)

    monkeypatch.setattr(commands, "find_spec", find)


def test_a_missing_extra_is_listed_and_named_by_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "mmengine", "onnx")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--help"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["cost"].endswith("[needs: pip install 'resq-plugin[mmseg]']")
    assert lines["export"].endswith("[needs: pip install 'resq-plugin[export,mmseg]']")
    assert lines["verify"].endswith("[needs: pip install 'resq-plugin[export]']")
    assert "needs" not in lines["demo"]

    assert main(["eval", "config.py", "--checkpoint", "weights.pth"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "resq eval: error: resq eval needs a package that is not installed; write: pip install 'resq-plugin[mmseg]'\n"
    )


def test_a_command_that_cannot_be_imported_is_listed_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_package.py").write_text("import a_package_nobody_has.part\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(monkeypatch, broken="broken_package:add", demo="resq_plugin.cli.demo:add")
    assert main(["--help"]) == 0
    assert "[needs: pip install a_package_nobody_has]" in capsys.readouterr().out
    assert main(["broken", "--what", "ever"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "write: pip install a_package_nobody_has" in error
    assert main(["demo", "--help"]) == 0


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_help_and_version_load_neither_torch_nor_a_toolkit(argument: str) -> None:
    code = (
        "import sys\n"
        "from resq_plugin.cli import main\n"
        f"code = main(['{argument}'])\n"
        "heavy = {'torch', 'numpy', 'rich', 'mmengine', 'mmcv', 'mmseg', 'onnx', 'aimet_torch', 'brevitas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_commands_are_added_by_name_only_once() -> None:
    parser = commands.Parser(prog="resq")
    found = parser.add_subparsers()
    commands.add_commands(found)
    assert isinstance(found, argparse._SubParsersAction)
    assert list(found.choices) == sorted(found.choices)
