"""The AIMET examples of the documents, extracted and run as they are."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resq_plugin.export import verify, verify_htp

pytest.importorskip("aimet_torch", reason="the extra aimet is not installed")
ROOT = Path(__file__).resolve().parent.parent


def example(page: str) -> str:
    """The code block that builds a sim."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if "aimet_torch.QuantizationSimModel(" in block)
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/aimet.md"])
def test_the_example_runs_in_an_empty_folder(page: str, tmp_path: Path) -> None:
    on_htp = "htp=" in example(page)
    if on_htp and importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("the extra htp is not installed")

    command = [sys.executable, "-c", example(page)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert verify(tmp_path / "out").passed
    if on_htp:
        found = verify_htp(tmp_path / "out", frames=1)
        assert found.passed
        assert found.worst_layer <= 1
        assert (tmp_path / "out" / "htp" / "residual_context.onnx").is_file()
