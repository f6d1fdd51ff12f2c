"""The site shows every guide and every public room, and its tables are those of the files in benchmarks/results."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def pages(node: object) -> list[str]:
    """The files that a navigation names."""
    if isinstance(node, str):
        return [node]
    parts = node.values() if isinstance(node, dict) else node
    return [page for part in parts for page in pages(part)]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    pytest.importorskip("mmengine")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("camvid_figures", ROOT / "benchmarks" / "camvid_figures.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_the_site_shows_every_page_once() -> None:
    shown = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    there = [path.relative_to(DOCS).as_posix() for end in ("md", "ipynb") for path in DOCS.rglob(f"*.{end}")]
    assert sorted(shown) == sorted(there)


def test_the_site_loads_nothing_from_elsewhere() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & settings.keys()
    assert {palette["scheme"] for palette in settings["theme"]["palette"]} == {"default", "slate"}


def test_every_public_room_has_a_page_of_its_own() -> None:
    rooms = {
        path.stem
        for path in (ROOT / "resq_plugin").iterdir()
        if path.stem not in {"__init__", "cli", "files", "extras", "logs", "tables", "__pycache__"}
        and path.suffix in {"", ".py"}
    }
    described = {}
    for path in (DOCS / "api").glob("*.md"):
        (described[path.stem],) = re.findall(r"^::: ([\w.]+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert described == {"resq_plugin": "resq_plugin", **{room: f"resq_plugin.{room}" for room in rooms}}


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_main_table_is_what_was_measured(page: str, figures: ModuleType) -> None:
    assert figures.markdown(result("camvid.json")["rows"]) in (ROOT / page).read_text(encoding="utf-8")


def test_the_table_of_references_is_what_was_measured(figures: ModuleType) -> None:
    assert figures.references(result("camvid.json")["rows"]) in (DOCS / "results.md").read_text(encoding="utf-8")


def test_every_file_of_results_has_a_line_that_says_where_it_is_shown() -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "benchmarks" / "results").glob("*.json") if path.stem not in text] == []


def test_readme_says_what_the_first_command_downloads() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    demo, tests = result("environment.json")["demo"], result("environment.json")["tests"]
    said = re.search(r"is (\d+) packages and ([\d.]+) GB to download, with the tests' (\d+) and ([\d.]+) GB", text)
    found = [f"{number}" for part in (demo, tests) for number in (part["packages"], round(part["megabytes"] / 1e3, 1))]
    assert list(said.groups()) == found
    assert f"{demo['torch_and_cuda_megabytes'] / 1e3:.1f} GB of either are torch and CUDA" in text
    assert demo["megabytes"] - demo["torch_and_cuda_megabytes"] < 100
