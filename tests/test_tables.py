"""What is printed: tables that a terminal of 80 columns holds, with units, in which nothing is cut."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import build
from torch import nn

from resq_plugin import ResQConfig, measure_cost, summarize
from resq_plugin.cli import main


class Deep(nn.Module):
    """Layers whose names are longer than a terminal is wide."""

    def __init__(self) -> None:
        super().__init__()
        name = "a_module_with_a_name_that_says_all_that_its_author_thought_of_and_that_goes_on_and_on_and_on"
        self.net = nn.ModuleDict({name: nn.Conv2d(3, 8, 3, padding=1, bias=False)})

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        return self.net[next(iter(self.net))](frame)


def fits(text: str) -> None:
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_printed_cost_is_a_table_of_modules_with_units() -> None:
    """480 pixels · 8 · 3 · 9 = 103 680 MACs; at 8 · 8 and 4 · 4 bits 6.64 and 1.66 MBOPs, 3.32 of an interval of 3."""
    cost = measure_cost(Deep(), (1, 3, 20, 24), ResQConfig.parse("W8A8->W4A4"))
    text = str(cost)
    fits(text)
    assert "W8A8->W4A4, averaged over T=3 frames" in text
    assert text.splitlines()[2].split()[:2] == ["module", "MMACs"]
    (total,) = [line for line in text.splitlines() if "total" in line]
    assert total.split() == ["total", "0.10", "6.64", "1.66", "3.32", "100.0%", "0.0"]
    assert "MBOPs = MMACs · b_w · b_a" in text


@pytest.mark.parametrize(
    ("shape", "unit", "macs"), [((1, 3, 2, 2), "kMACs", "0.86"), ((1, 3, 1024, 2048), "GMACs", "0.45")]
)
def test_units_fit_the_net(shape: tuple[int, ...], unit: str, macs: str) -> None:
    text = str(measure_cost(Deep(), shape))  # 216 MACs per pixel
    (total,) = [line for line in text.splitlines() if "total" in line]
    assert unit in text
    assert total.split()[1] == macs


def test_what_stays_in_float_and_what_is_not_counted_follow() -> None:
    text = str(measure_cost(build("residual", exclude=("head",)), (1, 3, 16, 16)))
    assert "In float: head" in text
    assert "Not counted: aten.relu" in text


def test_a_printed_summary_is_a_table() -> None:
    summary = summarize(build("residual", exclude=("head",)))
    text = str(summary)
    fits(text)
    rows = {name: rest for name, *rest in (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())}
    assert rows["with two quantized paths"] == ["4", "stem.0, conv1, conv2, downsample.0"]
    assert rows["in float: excluded"] == ["1", "head"]
    assert rows["batch norms folded"] == ["4", "stem.1, bn1, bn2, downsample.1"]
    fits(str(summarize(build(Deep))))


def test_of_many_names_some_are_printed() -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(9))).eval()
    assert "9   0, 1, 2, 3, 4, 5, ... and 3 more" in str(summarize(build(net)))


def test_resq_cost_cuts_nothing_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["cost", "vos::stm-small", "--shape", "64", "96", "--depth", "0"]) == 0
    table = capsys.readouterr().out.partition("Peak")[0]
    fits(table)
    assert "memory.stages.0.0.project" in table
