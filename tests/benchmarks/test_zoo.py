"""The tables of the model zoos: in step with their JSON file, and the file with the nets."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

pytest.importorskip("mmseg")
pytest.importorskip("mmpose")

from resq_mmengine.tested import TESTED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "zoo.json"


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("zoo")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"]


def test_every_tested_net_has_a_row(rows: list[dict[str, Any]]) -> None:
    assert {row["net"]: row["config"] for row in rows} == TESTED


@pytest.mark.parametrize("toolkit", ["mmseg", "mmpose"])
def test_the_tables_of_the_documents_are_those_of_the_file(
    zoo: ModuleType, rows: list[dict[str, Any]], toolkit: str
) -> None:
    document = (ROOT / "docs" / f"{toolkit}.md").read_text()
    written = document.split(zoo.BEGIN)[1].split(zoo.END)[0]
    assert written.strip() == zoo.section([row for row in rows if row["toolkit"] == toolkit])


@pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning")  # of MMDet's CSPNeXt
@pytest.mark.parametrize(
    "net",
    ["Fast-SCNN", "RTMPose-s"]
    + [pytest.param(net, marks=pytest.mark.slow) for net in TESTED if net not in ("Fast-SCNN", "RTMPose-s")],
)
def test_the_file_has_what_is_measured(zoo: ModuleType, rows: list[dict[str, Any]], net: str) -> None:
    """The counts are exact, and PyTorch's own counter finds the MACs that `measure_cost` finds and those it lists."""
    row = zoo.measure(net)
    assert json.loads(json.dumps(row)) == next(row for row in rows if row["net"] == net)
    assert (row["macs"]["converted"] < row["macs"]["all"]) == bool(row["dense"])
    expected = row["macs"]["converted"] * (64 + 16 + 16) / 3 / 1e9
    assert row["gbops_per_frame"]["W8A8->W4A4"] == pytest.approx(expected, rel=1e-12)


def test_macs_by_hand(zoo: ModuleType) -> None:
    """10 · 20 pixels: 8 · 3 · 9 for the convolution and 4 · 8 for the layer on its channels."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, frame: Tensor) -> Tensor:
            return self.linear(self.conv(frame).flatten(2).transpose(1, 2))

    assert zoo.count_macs(Net(), (1, 3, 10, 20)) == 200 * (8 * 3 * 9 + 4 * 8)


def test_a_section_of_two_nets(zoo: ModuleType) -> None:
    row = {
        "net": "A",
        "shape": [1, 3, 64, 128],
        "layers": {"converted": 3, "all": 4},
        "batch_norms": {"folded": 2, "all": 2},
        "macs": {"converted": 6_000_000_000, "all": 8_000_000_000},
        "gbops_per_frame": dict.fromkeys(zoo.PRECISIONS, 1.25),
        "state_bytes": 3 * 2**20,
        "dense": {"MultiheadAttention": 1},
    }
    other = {**row, "net": "B", "macs": {"converted": 5_000_000_000, "all": 5_000_000_000}, "dense": {}}
    lines = zoo.section([row, other]).splitlines()
    assert lines[2] == "| A | 64×128 | 3 / 4 | 2 / 2 | 8.00 | 75.00 % | 1.2 | 1.2 | 1.2 | 1.2 | 3 MiB |"
    assert lines[3].startswith("| B | 64×128 | 3 / 4 | 2 / 2 | 5.00 | 100.00 % |")
    assert lines[-1] == "- A: 2 GMACs in 1 MultiheadAttention, 2048.0 GBOPs as float (32 bits)."


def test_only_what_is_between_the_markers_is_replaced(zoo: ModuleType, tmp_path: Path) -> None:
    document = tmp_path / "mmseg.md"
    document.write_text(f"# Guide\n{zoo.BEGIN}\nold\n{zoo.END}\nrest\n")
    zoo.insert(document, "new")
    zoo.insert(document, "newer")
    assert document.read_text() == f"# Guide\n{zoo.BEGIN}\n\nnewer\n\n{zoo.END}\nrest\n"
    document.write_text("# Guide\n")
    with pytest.raises(SystemExit, match=r"mmseg\.md has no lines"):
        zoo.insert(document, "new")
    assert document.read_text() == "# Guide\n"
