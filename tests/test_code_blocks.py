"""Every complete Python block of README and the guides runs as it stands, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": ROOT / "README.md", "docs/python.md": ROOT / "docs" / "python.md"}


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page that import what they use."""
    found = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in found if re.search(r"^(import|from) ", block, re.MULTILINE)]


CASES = [(name, index) for name, page in PAGES.items() for index in range(len(blocks(page)))]


def run(code: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "index"), CASES, ids=str)
def test_a_block_runs(name: str, index: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("av")
    assert run(["-c", blocks(PAGES[name])[index]], tmp_path)


def test_readmes_first_block_is_short_and_says_how_to_install() -> None:
    first = blocks(PAGES["README.md"])[0]
    assert len(first.strip().splitlines()) <= 15
    assert "pip install" in first


def test_the_example_runs(tmp_path: Path) -> None:
    text = run([str(ROOT / "docs" / "examples" / "plain_torch.py")], tmp_path)
    assert "the loaded model predicts the same: True" in text
    assert "agreement with the float model" in text
