"""The soak benchmark in short: it runs, its threads equal the serial run, and its file holds what it promises."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark as a module; it sets the number of threads."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield importlib.import_module("soak")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["W8A8->W8A{0,4,8}", "W8A8->W8A4"])
def test_a_short_soak(soak: ModuleType, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "soak.json"
    code = soak.main(["--frames", "60", "--out", str(out), "--precision", precision])
    result = json.loads(out.read_text())
    assert (result["frames"], result["precision"], code) == (60, precision, 0 if result["ok"] else 1)
    assert result["threads"]["equal"] is True
    assert (result["threads"]["streams"], result["threads"]["frames_each"]) == (8, 2)
    assert len(result["memory_mb"]) == 60
    assert min(result["memory_mb"]) > 0
    assert len(result["state_bytes"]) == 1
    assert [row["frame"] for row in result["drift"]] == [11, 17, 23, 29, 35, 41, 47, 53, 59]
    assert all(math.isfinite(value) for row in result["drift"] for value in row.values())
    assert all(row["long_agreement"] > 85 for row in result["drift"])
    assert result["drift_ratio"] <= soak.DRIFT_LIMIT
    assert "eight threads equal eight serial streams: True" in capsys.readouterr().out


def test_frames_play_forwards_and_backwards(soak: ModuleType) -> None:
    frame = soak.scene(3)
    assert frame(0).shape == (1, 3, *soak.SIZE)
    last = soak.SCENE - 1
    for t in (0, 1, last - 1, last):
        assert torch.equal(frame(2 * last - t), frame(t))
        assert torch.equal(frame(2 * last + t), frame(t))
    assert not torch.equal(frame(0), frame(1))


@pytest.mark.parametrize(
    ("differ", "growth", "ratio", "code"),
    [
        pytest.param(False, 0.0, 1.0, 0, id="fine"),
        pytest.param(True, 0.0, 1.0, 1, id="threads differ"),
        pytest.param(False, 100.0, 1.0, 1, id="memory grows"),
        pytest.param(False, 0.0, 2.0, 1, id="drift"),
    ],
)
def test_the_exit_code_tells_whether_a_limit_is_broken(
    soak: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    differ: bool,
    growth: float,
    ratio: float,
    code: int,
) -> None:
    row = dict.fromkeys(["fresh_lsb", "between_lsb", "long_agreement", "fresh_agreement", "between_agreement"], 1.0)
    endured = {"growth_mb": growth, "state_bytes": [1], "drift": [{"frame": 1, "long_lsb": ratio, **row}]}
    monkeypatch.setattr(soak, "prepare", lambda precision: None)
    monkeypatch.setattr(soak, "endure", lambda model, frames, console: endured)
    monkeypatch.setattr(soak, "threads", lambda model, frames: {"equal": not differ})
    assert soak.main(["--out", str(tmp_path / "soak.json")]) == code
    assert json.loads((tmp_path / "soak.json").read_text())["ok"] is (code == 0)


def test_threads_that_differ_are_noticed(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a model whose output depends on how often it was called, THEN streams do not agree."""

    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def __call__(self, frame: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return frame + self.calls

    monkeypatch.setattr(soak, "stream", lambda model: model)
    assert soak.threads(Counts(), 2)["equal"] is False
    monkeypatch.setattr(soak, "stream", lambda model: torch.neg)
    assert soak.threads(Counts(), 2)["equal"] is True
