"""The lines of docs/vos.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import resq_vos
from vos_helpers import moving_squares, tiny_stm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vos.md"


def test_the_ten_lines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    monkeypatch.setattr(resq_vos, "load_stm", lambda path: tiny_stm())
    frames, labels = moving_squares(8)
    names: dict[str, Any] = {"frames": list(frames[:, None]), "first_labels": labels[0]}
    exec(code, names)
    assert [tuple(found.shape) for found in names["labels"]] == [(1, 32, 44)] * 8
    assert names["tracker"].objects == [(0, 1), (0, 2)]
