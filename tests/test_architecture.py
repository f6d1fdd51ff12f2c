"""Arrows between rooms run one way, rooms show what they give, and nothing pulls in a toolkit by being imported."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEVELS = (
    ("errors",),
    ("extras", "config", "files", "logs", "tables"),
    ("method", "video"),
    ("backends",),
    ("conversion", "cost", "evaluation"),
    ("calibration",),
    ("training",),
    ("report",),
    ("comparison",),
    ("export", "demo", "planning"),
    ("cli",),
)
"""errors <- extras, config, files, logs, tables <- method <- ...: a room takes from those of lower levels only."""

LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
OUTSIDE = {"resq_aimet", "resq_brevitas", "resq_mmengine", "resq_mmseg", "resq_mmpose", "resq_vos"}
TOOLKITS = {"aimet_torch", "brevitas", "mmengine", "mmcv", "mmseg", "mmpose", "mmdet", "onnxruntime_qnn"}


@dataclass(frozen=True)
class Import:
    """``from module import names`` (or ``import module``, without names) in a file."""

    file: Path
    line: int
    module: str
    names: tuple[str, ...]
    in_function: bool

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.module}"


def imports_of(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(part) for function in functions for part in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            names = tuple(alias.name for alias in node.names)
            yield Import(file, node.lineno, node.module or "", names, id(node) in inside)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, (), id(node) in inside)


def files_in(*folders: str) -> list[Path]:
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    return files


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "resq_plugin").with_suffix("").parts[0]


def faults(file: Path) -> Iterator[str]:
    """What is wrong with the imports of a file of `resq_plugin`."""
    room = room_of(file)
    for found in imports_of(file):
        package, _, rest = found.module.partition(".")
        target = rest.partition(".")[0]
        if package in OUTSIDE | TOOLKITS and not found.in_function:
            yield f"{found.where} is imported by being imported; import it in the function that needs it"
        if package != "resq_plugin" or room == "__init__":
            continue
        if not target:
            if set(found.names) - {"__version__"}:
                yield f"{found.where} is above every room; import {found.names} from its room"
        elif target != room and LEVEL_OF[target] >= LEVEL_OF[room]:
            yield f"{found.where} is not below {room}"


def shown_by(room: str) -> set[str]:
    return set(importlib.import_module(f"resq_plugin.{room}").__all__)


def deep_imports(file: Path, own: str) -> Iterator[str]:
    """Imports that reach into another room, or take what it does not list."""
    for found in imports_of(file):
        package, _, rest = found.module.partition(".")
        room, _, inner = rest.partition(".")
        if package != "resq_plugin" or not room or room == own:
            continue
        if inner:
            yield f"{found.where} reaches into the room {room}; its __init__ lists what others may take"
        hidden = set(found.names) - shown_by(room)
        if hidden and not inner:
            yield f"{found.where} does not list {sorted(hidden)}"


def test_every_room_has_its_level() -> None:
    found = {room_of(file) for file in files_in("resq_plugin")} - {"__init__", "py"}
    assert found == set(LEVEL_OF)


def test_arrows_run_one_way() -> None:
    assert not [fault for file in files_in("resq_plugin") for fault in faults(file)]


def test_rooms_show_what_others_take() -> None:
    own = [fault for file in files_in("resq_plugin") for fault in deep_imports(file, room_of(file))]
    guests = [fault for file in files_in("adapters", "integrations", "benchmarks") for fault in deep_imports(file, "")]
    assert not own + guests


@pytest.mark.parametrize("room", [room for room in LEVEL_OF if (ROOT / "resq_plugin" / room).is_dir()])
def test_a_room_says_what_it_is_for_and_what_it_gives(room: str) -> None:
    module = importlib.import_module(f"resq_plugin.{room}")
    assert module.__doc__
    assert all(hasattr(module, name) for name in module.__all__)


def test_no_file_repeats_a_public_function() -> None:
    public = {name for name in importlib.import_module("resq_plugin").__all__ if name.islower()}
    assert not [file for file in files_in("resq_plugin") if file.stem in public]


@pytest.mark.parametrize(
    ("room", "code", "fault"),
    [
        ("method", "from resq_plugin.calibration import calibrate", "resq_plugin.calibration is not below method"),
        ("method", "def run():\n    from resq_plugin.cost import Cost", "resq_plugin.cost is not below method"),
        ("cost", "import resq_plugin.evaluation", "resq_plugin.evaluation is not below cost"),
        ("cli", "import mmengine", "mmengine is imported by being imported"),
        ("cli", "from resq_mmengine.zoo import build_model", "resq_mmengine.zoo is imported by being imported"),
        ("demo", "from resq_plugin import convert", "resq_plugin is above every room"),
    ],
)
def test_a_wrong_arrow_is_found_with_file_and_line(
    room: str, code: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "resq_plugin" / room / "new.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"import torch\n\n{code}\n")
    line = 3 + code.count("\n")
    found = list(faults(file))
    assert len(found) == 1
    assert found[0].startswith(f"resq_plugin/{room}/new.py:{line}: {fault}")
