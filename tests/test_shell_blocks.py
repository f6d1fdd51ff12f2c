"""Every command line in README, CONTRIBUTING and the guides is one that the real programs take."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Block, all_blocks

from resq_plugin.cli.commands import Parser, add_commands

NOT_OURS = {
    "qairt-converter": "Qualcomm's converter, which no registry has; docs/export.md says so",
    "qairt-quantizer": "as qairt-converter",
    "qnn-onnx-converter": "as qairt-converter",
    "python tools/test.py": "MMSegmentation's own script, in its repository only",
}
"""Beginning of a command line that is not checked, to the reason."""

TOOLS = {"pytest", "ruff", "mypy", "mkdocs", "pre-commit"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]


@dataclass(frozen=True)
class Line:
    """One command of a block, or one in the text; the latter may leave out what is required."""

    where: str
    text: str
    whole: bool


def commands_in(block: Block) -> list[Line]:
    """The command lines of a block, without prompts, comments and the brackets of what may be left out."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "\n".join(re.findall(r"^\$ (.*)$", text, re.MULTILINE))
    lines = [re.sub(r"(?:^|\s)#.*", "", line) for line in text.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&") if part.strip()]
    return [Line(str(block), re.sub(r"\s\[(--[^\]]*)\]", r" \1", part), whole=True) for part in parts]


def commands_in_text(page: str) -> list[Line]:
    """What a page says between backticks that begins as a command does."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`((?:uv |resq (?!=)|pip |python -m |pytest )[^`]*)`", text)
    return [Line(page, part.strip(), whole=False) for line in found for part in line.replace("\n", " ").split("&&")]


SHELL = [line for block in all_blocks() if block.language in {"bash", "console"} for line in commands_in(block)]
IN_TEXT = [line for page in PAGES for line in commands_in_text(page)]


@cache
def parser() -> Parser:
    """The real parser of `resq`, with the commands of all integrations."""
    made = Parser(prog="resq")
    add_commands(made.add_subparsers(dest="command", required=True))
    return made


def subparser(command: str) -> Parser:
    (action,) = (action for action in parser()._actions if action.choices and action.dest == "command")
    return action.choices[command]


def check_resq(arguments: list[str], *, whole: bool) -> None:
    if whole:
        parser().parse_args(arguments)
        return
    known = subparser(arguments[0])._option_string_actions
    assert {word for word in arguments[1:] if word.startswith("--")} <= known.keys(), arguments


def check_script(path: Path, arguments: list[str]) -> None:
    shared = path.with_name("common.py")  # options that benchmarks share
    source = path.read_text(encoding="utf-8") + (shared.read_text(encoding="utf-8") if shared.is_file() else "")
    known = re.findall(r'"(--[\w-]+)"', source)
    assert {word for word in arguments if word.startswith("--")} <= {*known, "--help"}, path


def check_python(arguments: list[str]) -> None:
    """Either ``-m MODULE ...`` of a package of ours, or a script of this repository."""
    if arguments[0] != "-m":
        check_script(ROOT / arguments[0], arguments[1:])
        return
    package, _, module = arguments[1].partition(".")
    (path,) = (ROOT / "integrations" / package).glob(f"{module}.py")
    check_script(path, arguments[2:])


def check_pip(arguments: list[str]) -> None:
    """``pip install`` of uv or of this package, with extras that there are."""
    assert arguments[0] == "install"
    for wanted in (word for word in arguments[1:] if not word.startswith("-")):
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?(?:[<>=].*)?", wanted).groups()  # type: ignore[union-attr]
        if name in {"resq-plugin", "."}:
            assert set((extras or "all").split(",")) <= PROJECT["project"]["optional-dependencies"].keys(), wanted


def check_uv(arguments: list[str], *, whole: bool) -> None:
    """``uv sync``, or ``uv run`` of a program that its groups bring."""
    verb, *rest = arguments
    groups = set(PROJECT["tool"]["uv"]["default-groups"])
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        assert option in {"--group", "--all-groups"}, option
        groups |= {rest.pop(0)} if option == "--group" else GROUPS.keys()
    assert groups <= GROUPS.keys()
    if verb == "run" and not rest:
        assert not whole, "uv run of what?"
    elif verb == "run":
        program = " ".join(rest)
        brought = "docs" if rest[0] == "mkdocs" else "demo" if program.startswith("resq demo") else "dev"
        assert brought in groups, f"write: uv run --group {brought} {program}"
        check(rest, whole=whole)
    else:
        assert (verb, rest) == ("sync", [])


def check(words: list[str], *, whole: bool) -> None:
    program, *arguments = words
    if program == "uv" and arguments:
        check_uv(arguments, whole=whole)
    elif program == "resq":
        check_resq(arguments, whole=whole)
    elif program == "python":
        check_python(arguments)
    elif program == "pip":
        check_pip(arguments)
    else:
        assert program in TOOLS, f"{program}: no test knows it; name it in NOT_OURS with the reason, or check it here"


@pytest.mark.parametrize("line", SHELL + IN_TEXT, ids=lambda line: f"{line.where} {line.text}"[:90])
def test_a_command_line_is_one_that_there_is(line: Line) -> None:
    pytest.importorskip("mmengine")
    if not any(line.text.startswith(begin) for begin in NOT_OURS):
        check(shlex.split(line.text), whole=line.whole)


def test_what_is_not_ours_is_still_there() -> None:
    assert all(any(line.text.startswith(begin) for line in SHELL) for begin in NOT_OURS)
    assert len(SHELL) > 15


@pytest.mark.parametrize("folder", ["benchmarks", "docs/examples"])
def test_what_scripts_say_of_themselves_is_there(folder: str) -> None:
    for path in sorted((ROOT / folder).glob("*.py")):
        for text in re.findall(r"uv run [^`#\n]*", path.read_text(encoding="utf-8")):
            check(shlex.split(text), whole=True)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("uv run resq cost vos::stm", "uv run --group dev"),
        ("uv run --group nothing pytest", "nothing"),
        ("resq demo --vidio my.mp4", "2"),
        ("resq demmo", "2"),
        ("python benchmarks/camvid.py --quik", "camvid.py"),
        ("pip install resq-plugin[aimmet]", "aimmet"),
        ("make all", "no test knows it"),
    ],
)
def test_a_wrong_line_is_found(text: str, fault: str) -> None:
    with pytest.raises((AssertionError, SystemExit), match=fault):
        check(shlex.split(text), whole=True)


def test_readme_sets_up_with_two_commands() -> None:
    (first,) = [block for block in all_blocks() if block.page == "README.md" and "pip install uv" in block.text]
    lines = first.text.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("pip install uv && uv run resq demo ")
    assert lines[1].startswith("uv run --group dev pytest ")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^uv run --group dev pytest$", ci, re.MULTILINE)
