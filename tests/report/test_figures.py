"""The figures: readable PNGs of the expected size that show what they were given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from PIL import Image

from resq_plugin.report import (
    MissingExtraError,
    ReportError,
    Series,
    accuracy_by_distance,
    accuracy_over_bops,
    policy_maps,
    predictions,
)
from resq_plugin.report.curves import curve_label, group_curves
from resq_plugin.report.style import BIT_COLOURS, COLOURS, DPI

PALETTE = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]


def row(scheme: str, precision: str, interval: int, accuracy: float, gbops: float, **extra: Any) -> dict[str, Any]:
    values = {"metric": "mIoU", "agreement": 98.0, "relative_bops": gbops / 10}
    return {
        "scheme": scheme,
        "precision": precision,
        "interval": interval,
        "accuracy": accuracy,
        "gbops_per_frame": gbops,
        **values,
        **extra,
    }


ROWS = [
    row("float", "float", 1, 80.0, 160.0),
    row("frame", "W8A8", 1, 79.5, 10.0),
    row("frame", "W4A4", 1, 50.0, 2.5),
    *(row("resq", "W8A8->W4A4", T, 80 - T, (10 + (T - 1) * 2.5) / T) for T in (2, 3, 4, 6)),
    *(row("dynamic", "W8A8->W4A{0,4,8}", 3, 79 - 9 * tau, 5 - 4 * tau, threshold=tau) for tau in (0.1, 0.2, 0.4)),
]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(image: np.ndarray[Any, Any], colour: str | tuple[int, int, int]) -> int:
    rgb = tuple(bytes.fromhex(colour[1:])) if isinstance(colour, str) else colour
    return int((image == np.array(rgb, dtype=np.uint8)).all(-1).sum())


def test_curves_of_every_scheme_are_in_the_picture(tmp_path: Path) -> None:
    path = accuracy_over_bops(ROWS, tmp_path / "deep" / "curves.png")
    image = pixels(path)
    assert image.shape == (round(4.4 * DPI), round(10 * DPI), 3)  # two rows of legend
    for scheme in ("float", "frame", "resq", "dynamic"):
        assert count(image, COLOURS[scheme]) > 100, scheme


def test_a_scheme_that_is_not_given_is_not_drawn(tmp_path: Path) -> None:
    image = pixels(accuracy_over_bops([r for r in ROWS if r["scheme"] != "dynamic"], tmp_path / "curves.png"))
    assert count(image, COLOURS["dynamic"]) == 0


def test_rows_make_the_curves_of_the_paper() -> None:
    curves = {curve_label(curve): [r["gbops_per_frame"] for r in curve] for curve in group_curves(ROWS)}
    assert list(curves) == [
        "Frame quantization W8A8",
        "Frame quantization W4A4",
        "ResQ W8A8→W4A4",
        "Dynamic-ResQ W8A8→W4A{0,4,8}, T=3, τ=0.1…0.4",
    ]
    assert curves["ResQ W8A8→W4A4"] == sorted(curves["ResQ W8A8→W4A4"])
    assert sum(map(len, curves.values())) == len(ROWS) - 1


def test_wide_costs_get_a_logarithmic_axis(tmp_path: Path) -> None:
    wide = [*ROWS, row("resq", "W4A4->W2A2", 6, 40.0, 0.2)]
    narrow = accuracy_over_bops([*ROWS, row("resq", "W4A4->W2A2", 6, 40.0, 2.2)], tmp_path / "narrow.png")
    assert (pixels(accuracy_over_bops(wide, tmp_path / "wide.png")) != pixels(narrow)).any()


def test_figures_leave_the_settings_of_matplotlib_and_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    accuracy_over_bops(ROWS, tmp_path / "curves.png")
    assert dict(mpl.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_distance_curves(tmp_path: Path) -> None:
    series = [Series("frame", "frame", [80, 60, 60]), Series("ResQ", "resq", [80, 79, 78])]
    image = pixels(accuracy_by_distance(series, tmp_path / "distance.png"))
    assert image.shape == (round(3.6 * DPI), round(7.6 * DPI), 3)
    assert count(image, COLOURS["frame"]) > 100
    assert count(image, COLOURS["resq"]) > 100
    assert count(image, COLOURS["dynamic"]) == 0


def test_policy_map_has_as_many_pixels_of_a_colour_as_the_policy_chose(tmp_path: Path) -> None:
    frames = torch.full((3, 3, 64, 96), 90, dtype=torch.uint8)
    choice = torch.zeros(32, 48, dtype=torch.uint8)
    choice[:, 24:] = 8
    choice[:8, 24:] = 4
    image = pixels(policy_maps(list(frames), [choice, choice], (0, 4, 8), tmp_path / "policy.png"))
    zero, four, eight = (count(image, colour) for colour in BIT_COLOURS[:3])
    assert zero > 10_000
    assert zero / (zero + four + eight) == pytest.approx(0.5, abs=0.05)
    assert eight / (zero + four + eight) == pytest.approx(0.375, abs=0.05)
    assert count(image, (90, 90, 90)) > 30_000


def test_predictions_show_mistakes_in_full_colour(tmp_path: Path) -> None:
    frames = torch.full((2, 3, 64, 96), 90, dtype=torch.uint8)
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    wrong = labels.clone()
    wrong[:, :, 48:] = 2
    columns = {"right": list(labels), "half wrong": list(wrong)}
    image = pixels(predictions(list(frames), list(labels), columns, PALETTE, tmp_path / "p.png"))
    truth, mistakes = count(image, PALETTE[0]), count(image, PALETTE[2])
    assert mistakes > 10_000
    assert truth == pytest.approx(2 * mistakes, rel=0.1)
    assert count(image, PALETTE[1]) == 0


def test_predictions_without_labels_are_not_faded(tmp_path: Path) -> None:
    frames = [torch.zeros(3, 64, 96, dtype=torch.uint8)]
    columns = {"ResQ": [torch.ones(64, 96, dtype=torch.int64)]}
    path = predictions(frames, None, columns, PALETTE, tmp_path / "p.png", classes=("a", "b", "c"), row_names=["x"])
    image = pixels(path)
    assert count(image, PALETTE[1]) > 10_000
    assert count(image, PALETTE[2]) > 50  # the legend


def bad_calls(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    frames, maps = list(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), [torch.zeros(8, 8, dtype=torch.int64)]
    path = tmp_path / "x.png"
    return {
        "no rows": (lambda: accuracy_over_bops([], path), "no rows"),
        "missing key": (lambda: accuracy_over_bops([{"scheme": "resq"}], path), "row 0 has no precision, interval"),
        "scheme": (lambda: accuracy_over_bops([{**ROWS[3], "scheme": "resqq"}], path), "Did you mean 'resq'"),
        "float only": (lambda: accuracy_over_bops(ROWS[:1], path), "only float rows"),
        "empty curve": (lambda: accuracy_by_distance([Series("a", "resq", [])], path), r"\('a', 'resq', 0\)"),
        "one frame": (lambda: policy_maps(frames[:1], [], (0, 8), path), "1 frames, 0 choices"),
        "pool": (lambda: policy_maps(frames, [maps[0] + 4], (0, 8), path), r"hold \[4\] bits"),
        "maps": (lambda: predictions(frames, None, {"a": maps}, PALETTE, path), "column 'a' has 1 label maps for 2"),
        "class": (lambda: predictions(frames[:1], None, {"a": [maps[0] + 3]}, PALETTE, path), "class 3"),
    }


@pytest.mark.parametrize("name", list(bad_calls(Path())))
def test_what_cannot_be_drawn_says_why(tmp_path: Path, name: str) -> None:
    call, message = bad_calls(tmp_path)[name]
    with pytest.raises(ReportError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"cannot write .*curves.png: (File exists|Not a directory)"):
        accuracy_over_bops(ROWS, tmp_path / "file" / "curves.png")


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        MissingExtraError, match=r"matplotlib is not installed; write: pip install 'resq-plugin\[report\]'"
    ):
        accuracy_over_bops(ROWS, tmp_path / "curves.png")
