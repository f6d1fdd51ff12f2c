"""The HTP benchmark: its numbers by hand, and its table in step with its JSON file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "htp.json"


@pytest.fixture
def htp(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("htp")


def test_confusion_and_miou_by_hand(htp: ModuleType) -> None:
    label = torch.tensor([[[0, 0, 1], [1, 1, 11]]])  # 11 is not judged
    prediction = torch.tensor([[[0, 1, 1], [1, 0, 3]]])

    table = htp.confusion(prediction, label)

    assert table[:2, :2].tolist() == [[1, 1], [1, 2]]
    assert table.sum() == 5
    assert htp.miou(table) == pytest.approx(100 * (1 / 3 + 2 / 4) / 2)


def test_the_table_is_that_of_the_file(htp: ModuleType) -> None:
    schemes = json.loads(RESULTS.read_text())["schemes"]
    text = (ROOT / "docs" / "export.md").read_text()

    assert list(schemes) == list(htp.SCHEMES)
    for cells in htp.rows(schemes):
        assert f"| {' | '.join(cells)} |" in text
    for row in schemes.values():
        assert row["onnxruntime"]["passed"]
        for key in ("htp", "torch"):
            table = np.array([line.split() for line in row[key]], dtype=np.int64)
            assert row[f"miou_{key}"] == round(htp.miou(table), 2)
        assert abs(row["miou_htp"] - row["miou_torch"]) <= 0.5
