"""The sentence for a boss: it cannot be read wrongly, and does not hide who wins."""

from __future__ import annotations

from typing import Any

import pytest

from resq_plugin.report import cheapest, finding, level_of


def example_rows(**accuracies: float) -> list[dict[str, Any]]:
    named = {
        "float": ("float", "float", 1, 16.0),
        "frame8": ("frame", "W8A8", 1, 1.0),
        "frame84": ("frame", "W8A4", 1, 0.5),
        "mixed": ("frame", "W8A8->W4A4", 3, 0.5),
        "resq": ("resq", "W8A8->W4A4", 3, 0.5),
        "resq6": ("resq", "W8A8->W4A4", 6, 0.375),
        "dynamic": ("dynamic", "W8A8->W4A{0,4,8}", 3, 0.41),
    }
    rows = []
    for name, accuracy in accuracies.items():
        scheme, precision, interval, bops = named[name]
        values = {"accuracy": accuracy, "metric": "mIoU", "agreement": 99.0, "gbops_per_frame": 9 * bops}
        rows.append({"scheme": scheme, "precision": precision, "interval": interval, "relative_bops": bops, **values})
    return rows


def test_finding_says_what_the_rows_say() -> None:
    rows = example_rows(float=80.0, frame8=79.9, frame84=70.0, mixed=60.0, resq=79.2, resq6=78.9, dynamic=79.0)
    assert finding(rows) == (
        "At 79 % mIoU: frame quantization needs 100 % of the bit operations of 8 bits (W8A8), ResQ 50 % (W8A8→W4A4, "
        "T=3), Dynamic-ResQ 41 % (W8A8→W4A{0,4,8}, T=3). With equal bit operations (W8A8→W4A4, T=3) ResQ reaches "
        "79.2 % and frame quantization 60.0 %."
    )


def test_agreement_is_named_and_its_level_is_the_first_that_resq_reaches() -> None:
    rows = example_rows(float=100.0, frame8=99.5, frame84=92.0, resq=97.6, dynamic=97.1)
    for row in rows:
        row["metric"] = "agreement"
    assert level_of(rows) == 97.0
    assert finding(rows) == (
        "At 97 % agreement with the float model: frame quantization needs 100 % of the bit operations of 8 bits "
        "(W8A8), ResQ 50 % (W8A8→W4A4, T=3), Dynamic-ResQ 41 % (W8A8→W4A{0,4,8}, T=3)."
    )


def test_finding_does_not_hide_that_resq_loses() -> None:
    rows = example_rows(float=80.0, frame84=79.5, mixed=70.0, resq=71.0, dynamic=40.0)
    assert level_of(rows) == 70.0
    assert finding(rows).startswith(
        "At 70 % mIoU: frame quantization needs 50 % of the bit operations of 8 bits (W8A4), ResQ 50 % (W8A8→W4A4, "
        "T=3); no setting of Dynamic-ResQ reaches it. Plain frame quantization is the cheapest here."
    )


def test_finding_says_when_no_setting_is_near() -> None:
    text = finding(example_rows(float=80.0, frame84=79.5, mixed=70.0, resq=50.0, dynamic=40.0))
    assert text.startswith(
        "At 79 % mIoU: frame quantization needs 50 % of the bit operations of 8 bits (W8A4); no setting of ResQ or "
        "Dynamic-ResQ reaches it. Plain frame quantization is the cheapest here."
    )
    assert "ResQ reaches 50.0 % and frame quantization 70.0 %" in text
    assert finding(example_rows(float=80.0, frame84=10.0, resq=50.0)) == "No setting reaches 79 % mIoU."


def test_finding_is_empty_without_resq() -> None:
    assert finding(example_rows(float=80.0, frame8=79.0)) == ""
    assert level_of(example_rows(resq=80.0)) is None


@pytest.mark.parametrize(("level", "interval"), [(78.0, 6), (79.0, 3), (80.0, None)])
def test_the_cheapest_is_of_those_good_enough(level: float, interval: int | None) -> None:
    row = cheapest(example_rows(float=80.0, resq=79.2, resq6=78.9), "resq", level)
    assert (row["interval"] if row else None) == interval
