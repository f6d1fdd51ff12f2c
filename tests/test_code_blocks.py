"""Every block of code in README and the guides runs, parses or is named here with the reason why not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from pages import PAGES, READER_HAS, ROOT, Block, all_blocks, blocks_of

ELSEWHERE = {
    ("README.md", "import aimet_torch"): "tests/test_readme_aimet.py runs it",
    ("docs/aimet.md", "import aimet_torch"): "tests/test_readme_aimet.py runs it",
    (
        "docs/house.md",
        "errors <- config, extras, files, logs, tables <- method",
    ): "a drawing; tests/test_architecture.py holds it",
    (
        "CONTRIBUTING.md",
        "errors <- config, extras, files, logs, tables <- method",
    ): "a drawing; tests/test_architecture.py holds it",
}
"""Page and beginning of a block that no test of this folder runs as it stands, to the reason."""

NEEDS = {
    "docs/brevitas.md": ("brevitas", "onnxscript", "qonnx"),
    "docs/export.md": ("onnxruntime_qnn",),
    "docs/vos.md": ("scipy",),
    "README.md": ("matplotlib", "av", "brevitas"),
    "docs/python.md": ("matplotlib", "av"),
    "docs/search.md": (),
}
"""Page to the packages of extras that its blocks use."""

SHORTER = {
    "docs/training.md": {"steps=300": "steps=3", "warmup=20": "warmup=1"},
    "docs/vos.md": {"activation_bits=(4, 8), weight_bits=(4, 8)": "keyframes=('W8A8',), residuals=('W4A4',)"},
}
"""Page to what is written there and takes minutes, and what is run instead."""


def reason_of(block: Block) -> str:
    """Why a block is not run here, or nothing."""
    found = [why for (page, begin), why in ELSEWHERE.items() if page == block.page and block.text.startswith(begin)]
    return found[0] if found else ""


def is_script(block: Block) -> bool:
    """Whether it says that it runs as it stands: it imports all that it uses."""
    pages = {"README.md", "docs/python.md", "docs/search.md"}
    return block.page in pages and "from resq_plugin.demo import" in block.text


def shorter(block: Block) -> str:
    """The text of a block with what `SHORTER` says."""
    text = block.text
    for long, short in SHORTER.get(block.page, {}).items():
        text = text.replace(long, short)
    return text


PYTHON = [block for block in all_blocks() if block.language == "python" and not reason_of(block)]
SCRIPTS = [block for block in PYTHON if is_script(block)]
CONTINUED = {block.page: [] for block in PYTHON if not block.is_config and not is_script(block)}
for _block in PYTHON:
    if not _block.is_config and not is_script(_block):
        CONTINUED[_block.page].append(_block)


def run(code: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_is_looked_at() -> None:
    """Shell blocks in test_shell_blocks.py, fragments of configs in test_config_blocks.py, everything else here."""
    for block in all_blocks():
        assert block.language in {"python", "bash", "console", "json", "toml"} or reason_of(block), str(block)
    assert len(SCRIPTS) == 4
    for (page, begin), why in ELSEWHERE.items():
        assert sum(block.text.startswith(begin) for block in blocks_of(page)) == 1, (page, begin)
        (named,) = re.findall(r"tests/[\w/.]+", why)
        assert (ROOT / named).is_file(), named
    for page, changes in SHORTER.items():
        assert all(sum(long in block.text for block in CONTINUED[page]) == 1 for long in changes), page


@pytest.mark.parametrize("page", PAGES)
def test_fences_close(page: str) -> None:
    fences = re.findall(r"^\s*```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(page))


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=() if block.page == "README.md" else pytest.mark.slow) for block in SCRIPTS],
    ids=[str(block) for block in SCRIPTS],
)
def test_a_script_runs_in_an_empty_folder(block: Block, tmp_path: Path) -> None:
    for package in NEEDS[block.page]:
        pytest.importorskip(package)
    assert run(["-c", block.text], tmp_path)


@pytest.mark.parametrize("page", CONTINUED)
def test_the_blocks_of_a_page_run_one_after_another(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of exporters, and of nets as small as these
        exec(compile(READER_HAS[page], f"READER_HAS[{page!r}]", "exec"), names)
        for block in CONTINUED[page]:
            # Tracebacks show the line of the page.
            exec(compile("\n" * block.line + shorter(block), str(ROOT / page), "exec"), names)


@pytest.mark.parametrize("block", [block for block in all_blocks() if block.language in {"json", "toml"}], ids=str)
def test_data_can_be_read(block: Block) -> None:
    assert json.loads(block.text) if block.language == "json" else tomllib.loads(block.text)


def test_readmes_first_block_is_short_and_says_how_to_install() -> None:
    first = next(block for block in SCRIPTS if block.page == "README.md")
    assert len(first.text.strip().splitlines()) <= 15
    assert "pip install" in first.text


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    text = run([str(ROOT / "docs" / "examples" / "plain_torch.py")], tmp_path)
    assert "the loaded model predicts the same: True" in text
    assert "agreement with the float model" in text
