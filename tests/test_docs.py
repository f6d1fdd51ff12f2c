"""The documents name what there is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def table_of_equations() -> list[list[str]]:
    lines = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(("| Eq.", "| §"))]
    assert len(rows) > 10
    return rows


@pytest.mark.parametrize("row", table_of_equations(), ids=lambda row: row[0])
def test_equations_name_code_and_tests_that_exist(row: list[str]) -> None:
    for name in re.findall(r"`([\w.]+)`", row[2]):
        room, _, rest = name.partition(".")
        parts = rest.split(".")
        module = importlib.import_module(".".join(["resq_plugin", room, *([] if room == "config" else parts[:1])]))
        for attribute in parts if room == "config" else parts[1:]:
            assert hasattr(module, attribute), name
    for path in re.findall(r"`(tests/[\w/.]+)`", row[3]):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", sorted([*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]))
def test_pages_name_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:resq_plugin|adapters|integrations|benchmarks|tests|docs)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_the_house_has_a_sentence_for_every_room() -> None:
    text = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "resq_plugin").iterdir() if (path / "__init__.py").is_file()}
    listed = set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE))
    assert listed == rooms
