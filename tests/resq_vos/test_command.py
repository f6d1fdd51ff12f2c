from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resq_vos import models
from resq_vos.davis import read_labels, write_labels
from vos_helpers import TINY, moving_squares, tiny_stm, write_davis

from resq_plugin.cli import main
from resq_plugin.video import VideoFile

KEYS = {"scheme", "precision", "interval", "accuracy", "metric", "agreement", "gbops_per_frame", "relative_bops"}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights of the tiny STM, which stands for the small one here."""
    monkeypatch.setitem(models.MODELS, "small", TINY)
    torch.save({name: tensor.half() for name, tensor in tiny_stm().state_dict().items()}, tmp_path / "tiny.pth")
    return str(tmp_path / "tiny.pth")


@pytest.fixture
def clip(tmp_path: Path) -> tuple[str, str]:
    """A folder of frames and the mask of its first."""
    frames, labels = moving_squares(7)
    (tmp_path / "clip").mkdir()
    for t, frame in enumerate(frames):
        pixels = (frame.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "clip" / f"{t}.png")
    write_labels(tmp_path / "first.png", labels[0])
    return str(tmp_path / "clip"), str(tmp_path / "first.png")


def fails_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def test_masks_film_and_rows(
    tmp_path: Path, weights: str, clip: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows_file = tmp_path / "out", tmp_path / "rows.json"
    argv = ["vos", clip[0], "--mask", clip[1], "--checkpoint", weights, "--out", str(out), "--json", str(rows_file)]
    assert main([*argv, "--precision", "W8A8->W4A8", "W8A8->W8A{0,4,8}", "--interval", "2"]) == 0

    values = json.loads(rows_file.read_text())
    assert json.loads((out / "vos.json").read_text()) == values
    rows = values["rows"]
    assert [(row["scheme"], row["precision"], row["interval"]) for row in rows] == [
        ("float", "float", 1),
        ("frame", "W8A8", 1),
        ("resq", "W8A8->W4A8", 2),
        ("dynamic", "W8A8->W8A{0,4,8}", 2),
    ]
    assert all(row.keys() >= KEYS for row in rows)
    assert rows[0]["agreement"] == 100
    assert rows[1]["relative_bops"] == 1
    assert rows[2]["relative_bops"] == pytest.approx(0.75)
    assert 0.5 < rows[3]["relative_bops"] < 1.3
    assert {row["metric"] for row in rows} == {"J with float"}
    assert [len(row["by_distance"]["J"]) for row in rows] == [0, 0, 2, 2]
    assert values["objects"] == [1, 2]
    for folder in ("float", "frame_W8A8", "resq_W8A8-W4A8", "dynamic_W8A8-W8A{0,4,8}"):
        masks = sorted((out / folder / "masks").glob("*.png"))
        assert len(masks) == 7
        assert (read_labels(masks[0]) == read_labels(clip[1])).all()
    assert len(VideoFile(out / "overlay.mp4")) == 7
    assert "ResQ" in (out / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "J at distance 0 ... 1" in printed


def test_intervals_longer_than_the_video(
    tmp_path: Path, weights: str, clip: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["vos", clip[0], "--mask", clip[1], "--checkpoint", weights, "--out", str(tmp_path / "out")]
    error = fails_with(capsys, *argv, "--interval", "7")
    assert "--interval 7 is longer than the video, which has 6 frames after the first" in error
    assert "interval=0 is not allowed" in fails_with(capsys, *argv, "--interval", "0")
    assert "every=0 is not allowed" in fails_with(capsys, *argv, "--every", "0")
    assert "frames=0 must be a number of at least 1" in fails_with(capsys, *argv, "--frames", "0")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"--checkpoint": None}, "no weights come with resq-plugin; pass --checkpoint"),
        ({"--checkpoint": "nowhere.pth"}, "--checkpoint nowhere.pth: there is no such file"),
        ({"--precision": "W8A8=>W4A8"}, "cannot read the precision"),
        ({"--interval": "0"}, "interval=0"),
        ({"--mask": "nowhere.png"}, "cannot read the mask nowhere.png"),
        ({"--frames": "3"}, "has 3 frames; at least 4 are needed"),
    ],
    ids=str,
)
def test_errors_of_the_user(
    weights: str,
    clip: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    change: dict[str, str | None],
    text: str,
) -> None:
    options = {"--mask": clip[1], "--checkpoint": weights, "--out": str(tmp_path / "out")} | change
    argv = [part for pair in options.items() if pair[1] is not None for part in pair]
    assert text in fails_with(capsys, "vos", clip[0], *argv)
    assert not (tmp_path / "out").exists()


def test_masks_must_fit_and_show_an_object(
    tmp_path: Path, weights: str, clip: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, labels, text in (
        ("wide", np.ones((32, 90), dtype=np.uint8), "does not fit frames of 32×44"),
        ("none", np.zeros((32, 44), dtype=np.uint8), "is empty; paint at least one object"),
    ):
        write_labels(tmp_path / f"{name}.png", labels)
        found = fails_with(capsys, "vos", clip[0], "--mask", str(tmp_path / f"{name}.png"), "--checkpoint", weights)
        assert text in found


@pytest.mark.parametrize(("year", "objects"), [("2016", 1), ("2017", 2)])
def test_eval_runs_the_layout_of_davis(
    tmp_path: Path,
    weights: str,
    year: str,
    objects: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal, which shows a bar
    root = write_davis(tmp_path / "davis", single=False)
    path = tmp_path / "rows.json"
    argv = ["eval", str(root), "--checkpoint", weights, "--precision", "W8A8->W4A8", "--interval", "2"]
    assert main([*argv, "--cfg-options", f"year={year}", "calibration=cat", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["scheme"] for row in rows] == ["float", "frame", "resq"]
    assert all(row.keys() >= KEYS | {"F", "J&F", "accuracy_by_position"} for row in rows)
    assert {row["metric"] for row in rows} == {"J"}
    assert all(set(row["sequences"]) == {"dog"} for row in rows)
    assert len(rows[0]["sequences"]["dog"]["objects"]) == objects
    shown = capsys.readouterr().out
    frames = len(list((root / "JPEGImages" / "240p" / "dog").iterdir()))
    assert f"/{1 + 3 * (1 + frames)}" in shown  # a sequence to calibrate on, and three schemes with their frames
    assert "resq: calibrating" in shown
    assert "left" in shown


def test_errors_of_eval_on_davis(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(write_davis(tmp_path / "davis"))
    argv = ["eval", root, "--checkpoint", weights]
    assert "name sequences that are not measured: --cfg-options calibration=" in fails_with(capsys, *argv)
    assert "Did you mean 'calibration'?" in fails_with(capsys, *argv, "--cfg-options", "calibraton=cat")
    assert "write a whole number" in fails_with(capsys, *argv, "--cfg-options", "every=often")
    assert "none is left to measure" in fails_with(capsys, *argv, "--cfg-options", "calibration=cat,dog")
    assert "no meaning for a folder of DAVIS" in fails_with(capsys, *argv, "--work-dir", str(tmp_path))


def test_damaged_annotations_of_davis_are_named(
    tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", weights, "--schemes", "frame", "--cfg-options", "calibration=cat"]
    for name, (sequence, frame, size), message in (
        ("empty", ("dog", 0, (64, 88)), "00000.png is empty; the first frame of a sequence has to show the objects"),
        ("unseen", ("cat", 0, (64, 88)), "00000.png is empty; the first frame of a sequence has to show the objects"),
        ("small", ("dog", 2, (20, 30)), "00002.png is 20 × 30 where that of the first frame is 64 × 88; all annot"),
    ):
        root = write_davis(tmp_path / name)
        path = root / "Annotations/480p" / sequence / f"{frame:05d}.png"
        Image.fromarray(np.zeros(size, np.uint8)).save(path)
        assert f"{path.parent}/{message}" in fails_with(capsys, "eval", str(root), *argv)


def test_cost_counts_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = []
    for objects in ("1", "2", "3"):
        path = tmp_path / f"{objects}.json"
        argv = ["cost", "vos::stm-small", "--shape", "240", "427", "--precision", "W8A8", "--objects", objects]
        assert main([*argv, "--json", str(path)]) == 0
        values.append(json.loads(path.read_text()))
    gbops = [value["gbops_per_frame"] for value in values]
    assert gbops[0] == pytest.approx(373, abs=0.5)
    assert gbops[2] - gbops[1] == pytest.approx(gbops[1] - gbops[0])
    assert [value["objects"] for value in values] == [1, 2, 3]
    capsys.readouterr()
    assert "Did you mean 'vos::stm'" in fails_with(capsys, "cost", "vos::stn", "--shape", "240", "427")
    assert "--objects 2: only networks" in fails_with(
        capsys, "cost", "mmseg::any.py", "--shape", "64", "64", "--objects", "2"
    )


def test_the_command_is_light() -> None:
    code = "import sys, resq_vos.command; assert not {'torch', 'PIL', 'scipy', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
