"""The demo: its numbers obey the rules of the method, and its command keeps the contract of `resq demo`."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from resq_plugin import CalibrationConfig, ResQConfig, calibrate, convert
from resq_plugin.cli import main
from resq_plugin.demo import CLASSES, DemoNet, SceneConfig, generate_clip, load_demo_net
from resq_plugin.demo.command import demo_command
from resq_plugin.demo.data import DemoData, procedural_data
from resq_plugin.demo.result import DemoResult
from resq_plugin.demo.run import SHOWN_LAYER, run_demo
from resq_plugin.demo.settings import DemoSettings
from resq_plugin.errors import ReportError
from resq_plugin.evaluation.metrics import Agreement, MeanIoU
from resq_plugin.evaluation.protocol import evaluate, float_predictions
from resq_plugin.report import finding, rich_table, row_label
from resq_plugin.report.rows import table_of
from resq_plugin.tables import table_text

CONTRACT = ("scheme", "precision", "interval", "accuracy", "metric", "agreement", "gbops_per_frame", "relative_bops")

SMALL = DemoSettings(
    frame=("W8A8", "W4A4"),
    mixed=("W8A8->W4A4",),
    resq=("W8A8->W4A4",),
    dynamic=("W8A8->W8A{0,4,8}", "W8A8->W4A{0,4,8}"),
    thresholds=(0.1, 0.3),
    intervals=(2,),
    videos=2,
    frames=6,
    calibration_clips=2,
    calibration=CalibrationConfig(samples=6, positions=256, recheck=0),
    trained=False,
)


def small_data() -> DemoData:
    scenes = [
        generate_clip(SceneConfig(64, 96, shapes=6, camera=camera, seed=seed), 6)
        for seed, camera in enumerate(("still", "pan", "still"))
    ]
    return DemoData("small scenes", [scenes[0][0]], [s[0] for s in scenes[1:]], [s[1] for s in scenes[1:]])


def make_net() -> DemoNet:
    torch.manual_seed(0)
    return DemoNet().eval()


@pytest.fixture(scope="module")
def ran() -> tuple[DemoResult, DemoNet]:
    net = make_net()
    return run_demo(net, small_data(), SMALL), net


@pytest.fixture(scope="module")
def rows(ran: tuple[DemoResult, DemoNet]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = {(row["scheme"], row["precision"], row["interval"], row.get("threshold")): row for row in ran[0].rows}
    assert len(found) == len(ran[0].rows)
    return found


def test_rows_keep_the_contract(rows: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    assert list(rows) == [
        ("float", "W32A32", 1, None),
        ("frame", "W8A8", 1, None),
        ("frame", "W4A4", 1, None),
        ("frame", "W8A8->W4A4", 2, None),
        ("frame", "W8A8->W4A4", 3, None),
        ("resq", "W8A8->W4A4", 2, None),
        ("resq", "W8A8->W4A4", 3, None),
        ("dynamic", "W8A8->W8A{0,4,8}", 3, 0.1),
        ("dynamic", "W8A8->W8A{0,4,8}", 3, 0.3),
        ("dynamic", "W8A8->W4A{0,4,8}", 2, 0.1),
        ("dynamic", "W8A8->W4A{0,4,8}", 3, 0.1),
    ]
    for row in rows.values():
        assert set(CONTRACT) <= set(row)
        assert row["metric"] == "mIoU"
        assert 0 <= row["accuracy"] <= 100
        assert 0 < row["agreement"] <= 100
        assert row["gbops_per_frame"] > 0


def test_float_agrees_with_itself_and_costs_sixteen_times_w8a8(rows: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    row = rows["float", "W32A32", 1, None]
    assert row["agreement"] == 100
    assert row["relative_bops"] == 32 * 32 / 64


def test_costs_are_exactly_those_of_the_bit_widths(rows: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    assert rows["frame", "W8A8", 1, None]["relative_bops"] == 1.0
    assert rows["frame", "W4A4", 1, None]["relative_bops"] == 0.25
    for scheme in ("resq", "frame"):
        assert rows[scheme, "W8A8->W4A4", 3, None]["relative_bops"] == 0.5
        assert rows[scheme, "W8A8->W4A4", 2, None]["relative_bops"] == 0.625
    base = rows["frame", "W8A8", 1, None]["gbops_per_frame"]
    for row in rows.values():
        assert row["relative_bops"] == pytest.approx(row["gbops_per_frame"] / base, rel=1e-12)


def test_dynamic_costs_lie_between_the_ends_of_its_pool(rows: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    for (scheme, precision, interval, _), row in rows.items():
        if scheme == "dynamic":
            widest = 1.0 if precision.startswith("W8A8->W8") else 0.5
            policy = 0.15  # what choosing itself costs at most in this net
            assert 1 / interval < row["relative_bops"] < (1 + (interval - 1) * (widest + policy)) / interval
    strict, loose = (rows["dynamic", "W8A8->W8A{0,4,8}", 3, tau]["relative_bops"] for tau in (0.1, 0.3))
    assert loose < strict


def test_accuracy_is_the_mean_over_positions(rows: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    for (scheme, _, interval, _), row in rows.items():
        positions = 3 if interval == 1 else interval
        assert len(row["by_distance"]) == len(row["agreement_by_distance"]) == positions, scheme
        assert row["accuracy"] == pytest.approx(sum(row["by_distance"]) / positions)
        assert row["agreement"] == pytest.approx(sum(row["agreement_by_distance"]) / positions)


def test_mixed_frame_quantization_is_made_of_its_two_precisions(rows: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    keyframe, other = (rows["frame", precision, 1, None]["by_distance"] for precision in ("W8A8", "W4A4"))
    assert rows["frame", "W8A8->W4A4", 3, None]["by_distance"] == [keyframe[0], *other[1:]]


def test_numbers_are_those_of_the_public_api(rows: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    net, data = make_net(), small_data()
    videos = [list(video.unsqueeze(1)) for video in data.videos]
    assert data.labels is not None
    labels = [list(label.unsqueeze(1)) for label in data.labels]

    def predict(scores: torch.Tensor) -> torch.Tensor:
        return scores.argmax(1)

    targets = {"mIoU": labels, "agreement": float_predictions(net, videos, predict)}
    convert(net, ResQConfig.parse("W8A8->W4A4", interval=3, calibration=SMALL.calibration), example=videos[0][0])
    calibrate(net, data.calibration)
    metrics = {"mIoU": lambda: MeanIoU(len(CLASSES)), "agreement": Agreement}
    found = evaluate(net, videos, targets, metrics, predict=predict)
    row = rows["resq", "W8A8->W4A4", 3, None]
    assert row["by_distance"] == list(found.by_distance["mIoU"])
    assert row["agreement"] == pytest.approx(found.mean("agreement"))


def test_the_net_is_given_back_as_it_was(ran: tuple[DemoResult, DemoNet]) -> None:
    net, before = ran[1], make_net()
    assert [type(module) for module in net.modules()] == [type(module) for module in before.modules()]
    for (name, value), expected in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_showcase_has_what_the_figures_need(ran: tuple[DemoResult, DemoNet]) -> None:
    showcase = ran[0].showcase
    assert showcase.frames.shape == (3, 3, 64, 96)
    assert showcase.labels.shape == (3, 64, 96)
    assert {len(maps) for maps in showcase.predictions.values()} == {3}
    assert [choice.shape for choice in showcase.choices] == [(32, 48)] * 2
    assert set(torch.stack(showcase.choices).flatten().tolist()) <= {0, 4, 8} == set(showcase.pool)
    assert SHOWN_LAYER in dict(make_net().named_modules())


def test_calibration_and_evaluation_scenes_differ_and_both_cameras_occur() -> None:
    data = procedural_data(2, 3, 2)
    assert data.labels is not None
    assert data.shape == (1, 3, 128, 192)
    for clip in data.calibration:
        assert not any(torch.equal(clip[0], video[0]) for video in data.videos)
    edges = [(video[1:] - video[:-1])[..., :8, :8].abs().mean() for video in data.videos]
    assert float(edges[1]) > float(edges[0])  # the second camera pans


@pytest.mark.parametrize(("frames", "interval", "intervals"), [(24, 3, (2, 4, 6)), (4, 3, (2, 4)), (2, 2, (2,))])
def test_no_interval_is_longer_than_the_video(frames: int, interval: int, intervals: tuple[int, ...]) -> None:
    fitted = DemoSettings().fitted(frames)
    assert (fitted.interval, fitted.intervals) == (interval, intervals)


def run_command(out: Path, monkeypatch: pytest.MonkeyPatch, video: Path | None = None) -> tuple[dict[str, Any], str]:
    monkeypatch.setattr("resq_plugin.demo.command.load_demo_net", make_net)
    console = Console(file=io.StringIO(), width=80)
    values = demo_command(video, out, console, replace(SMALL, frames=4, thresholds=(0.1,)))
    return values, console.file.getvalue()  # type: ignore[attr-defined]


def test_command_leaves_figures_report_and_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    begin = time.perf_counter()
    values, text = run_command(tmp_path / "out", monkeypatch)
    assert time.perf_counter() - begin < 60
    names = {
        "accuracy_over_bops.png",
        "agreement_by_distance.png",
        "policy_maps.png",
        "predictions.png",
        "report.html",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert json.loads(json.dumps(values))["rows"] == values["rows"]
    assert "…" not in text
    assert text.rstrip().splitlines()[-1] == values["finding"] == finding(values["rows"])
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 4


def test_command_without_the_extra_still_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    threads = torch.get_num_threads()
    values, text = run_command(tmp_path, monkeypatch)
    assert values["rows"]
    assert "No figures and no report: matplotlib is not installed" in text
    assert not list(tmp_path.iterdir())
    assert torch.get_num_threads() == threads


def test_command_on_a_video_of_two_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    path = tmp_path / "[short].mp4"
    write_moving_square(path, 2)
    values, text = run_command(tmp_path / "out", monkeypatch, path)
    assert "[short].mp4, 2 frames, also calibrated on" in text
    assert {row["metric"] for row in values["rows"]} == {"agreement"}
    assert all(row["accuracy"] == row["agreement"] for row in values["rows"])
    assert {row["interval"] for row in values["rows"]} == {1, 2}
    assert (tmp_path / "out" / "report.html").is_file()


def test_only_what_a_demo_wrote_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("resq_plugin.demo.command._data", lambda *_: pytest.fail("refused at the start"))
    for name in ("report.html", "predictions.png", "demo.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ReportError, match=f"holds {name}, which is of no earlier demo; give --out another"):
            run_command(folder, monkeypatch)
        assert (folder / name).read_text() == "mine"
        assert len(list(folder.iterdir())) == 1

    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run_command(tmp_path / "out", monkeypatch)
    first = (tmp_path / "out" / "report.html").stat().st_ino
    run_command(tmp_path / "out", monkeypatch)
    assert (tmp_path / "out" / "report.html").stat().st_ino != first
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def write_moving_square(path: Path, frames: int) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for index in range(frames):
            image = torch.full((128, 192, 3), 90, dtype=torch.uint8)
            image[40:80, 20 + 4 * index : 70 + 4 * index] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")))
        container.mux(stream.encode())


def test_unusable_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot make the folder {tmp_path / 'file'}" in error
    assert "--out" in error


@pytest.mark.slow
def test_full_demo_shows_the_finding_of_the_paper(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["demo", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows.json")]) == 0
    values = json.loads((tmp_path / "rows.json").read_text())
    assert values == json.loads((tmp_path / "out" / "demo.json").read_text())
    rows = {(r["scheme"], r["precision"], r["interval"], r.get("threshold")): r for r in values["rows"]}
    best = rows["float", "W32A32", 1, None]
    for interval in (2, 3, 4, 6):
        frame, resq = (rows[scheme, "W8A8->W4A4", interval, None] for scheme in ("frame", "resq"))
        assert frame["gbops_per_frame"] == resq["gbops_per_frame"]
        assert resq["accuracy"] > frame["accuracy"] + 5
        assert resq["agreement"] > frame["agreement"] + 1
        dynamic = rows["dynamic", "W8A8->W4A{0,4,8}", interval, 0.1]
        assert dynamic["gbops_per_frame"] < resq["gbops_per_frame"]
        assert dynamic["agreement"] > resq["agreement"] - 0.2
    assert rows["resq", "W8A8->W4A4", 3, None]["accuracy"] > best["accuracy"] - 2
    drift = rows["resq", "W8A8->W4A4", 6, None]["agreement_by_distance"]
    assert all(later < earlier for earlier, later in pairwise(drift))


def test_the_trained_net_has_a_row_of_its_own_that_no_sentence_uses() -> None:
    """GIVEN the weights that were trained through time, THEN they are far above the same precision untrained."""
    settings = replace(SMALL, frame=("W4A4",), mixed=(), resq=("W4A4->W3A3",), dynamic=(), intervals=(), trained=True)
    rows = run_demo(load_demo_net(), procedural_data(1, 6, 4), settings).rows
    before, after = (row for row in rows if row["precision"] == "W4A4->W3A3")
    assert after["trained"]
    assert "trained" not in before
    assert after["gbops_per_frame"] == pytest.approx(before["gbops_per_frame"])
    assert after["accuracy"] > before["accuracy"] + 10
    assert [line[:2] for line in table_of(rows)[1]][-2:] == [("ResQ", "W4A4→W3A3"), ("ResQ + QAT", "W4A4→W3A3")]
    assert row_label(after) == "ResQ + QAT W4A4→W3A3, T=3"
    dynamic = {**after, "scheme": "dynamic", "precision": "W8A8->W8A{0,4,8}", "threshold": 0.1}
    text = table_text(rich_table([*rows, dynamic]), 80)
    for heading in table_of([*rows, dynamic])[0]:
        assert heading in text


def test_what_calibration_finds_in_our_own_settings_is_not_the_readers_concern(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    level = logging.getLogger("resq_plugin.calibration").level
    settings = replace(SMALL, frame=("W4A8",), mixed=(), resq=("W8A8->W4A4",), dynamic=(), intervals=(6,))
    demo_command(None, tmp_path / "out", Console(file=io.StringIO()), replace(settings, videos=1, frames=6))
    assert not [record for record in caplog.records if record.name.startswith("resq_plugin.calibration")]
    assert logging.getLogger("resq_plugin.calibration").level == level
