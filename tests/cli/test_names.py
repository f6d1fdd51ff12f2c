"""What a user named is printed as it is, and Ctrl-C is one line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from resq_plugin.cli import main, program

NAMES = ["conf[/y]", "a[bold]b[/bold]", "[red]", ":smile:", "x[0]", "\\[q]"]


def with_command(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Let ``resq try`` be a command that runs this."""

    def add(commands: Any) -> None:
        commands.add_parser("try").set_defaults(run=run, missing="")

    monkeypatch.setattr(program, "add_commands", add)


@pytest.mark.parametrize("name", NAMES)
def test_text_and_tables_keep_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: argparse.Namespace, console: Console) -> int:
        table = Table("layer", title=f"of {name}", caption=f"in {name}")
        table.add_row(name)
        console.print(f"written to {name}")
        console.print(table)
        with console.status(f"{name!r}" if name != "conf[/y]" else "working"):
            return 0

    with_command(monkeypatch, run)
    assert main(["try"]) == 0
    assert capsys.readouterr().out.count(name) == 4


@pytest.mark.parametrize("name", ["conf[/y]", "a[bold]b :smile:"])
def test_a_folder_of_any_name_is_told_as_it_is(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "--copy", str(tmp_path / name)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert all(Path(line).is_file() for line in lines)
    assert all(line.startswith(str(tmp_path / name)) for line in lines)


def test_errors_keep_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "conf[/y].py", "--shape", "8", "8"]) == 2
    assert "conf[/y].py" in capsys.readouterr().err


def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: Any) -> int:
        raise KeyboardInterrupt

    with_command(monkeypatch, run)
    assert main(["try"]) == 130
    assert capsys.readouterr() == ("", "resq: interrupted\n")
