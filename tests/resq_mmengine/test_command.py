"""``resq eval`` on a made-up CamVid folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.runner import Runner
from resq_mmengine.command import prepare_config
from tiny_video import config, make_frames

from resq_plugin.cli import main
from resq_plugin.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, a float checkpoint and a config file without the fragment."""
    folder = tmp_path_factory.mktemp("eval")
    make_frames(folder, "calib", 4)
    make_frames(folder, "val", 4)
    torch.manual_seed(0)
    cfg = config(folder, folder)
    torch.save({"state_dict": Runner.from_cfg(cfg).model.state_dict(), "meta": {}}, folder / "float.pth")
    cfg.default_hooks.pop("resq")
    cfg.test_dataloader.sampler = {"type": "DefaultSampler", "shuffle": False}
    cfg.dump(folder / "config.py")
    return folder


def run(case: Path, *arguments: str) -> dict[str, Any]:
    out = case / "rows.json"
    checkpoint = ("--checkpoint", str(case / "float.pth"))
    assert main(["eval", str(case / "config.py"), *checkpoint, "--json", str(out), *arguments]) == 0
    return json.loads(out.read_text())


def test_the_three_schemes_side_by_side(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(case, "--agreement")["rows"]
    assert [(row["scheme"], row["precision"], row["interval"]) for row in rows] == [
        ("float", "W32A32", 1),
        ("frame", "W8A8", 1),
        ("resq", "W8A8->W4A4", 3),
    ]
    assert [row["relative_bops"] for row in rows] == pytest.approx([16, 1, 0.5])
    assert rows[0]["agreement"] == 100
    assert rows[1]["agreement"] >= rows[2]["agreement"] > 20
    assert {row["metric"] for row in rows} == {"seg/mIoU"}
    assert len(rows[2]["accuracy_by_position"]) == 3
    assert rows[2]["accuracy"] == pytest.approx(sum(rows[2]["accuracy_by_position"]) / 3)
    printed = capsys.readouterr().out
    assert "W8A8→W4A4" in printed
    assert "seg/mIoU at positions 0 ... 2:" in printed


def test_positions_that_did_not_occur_are_no_numbers(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN a cut at every frame, THEN only keyframes are reported, at the cost of keyframes."""
    schedule = ("--cfg-options", "resq.schedule.kind=scene_change", "resq.schedule.threshold=1e-6")
    row = run(case, "--schemes", "resq", *schedule)["rows"][0]
    assert row["accuracy_by_position"] == [pytest.approx(row["accuracy"]), None, None]
    assert row["relative_bops"] == pytest.approx(1)
    assert f"positions 0 ... 2: {row['accuracy']:.2f} – –" in " ".join(capsys.readouterr().out.split())


def test_arguments_go_before_the_config(case: Path) -> None:
    arguments = ("--precision", "W8A8->W8A{0,4,8}", "--interval", "2", "--schemes", "resq")
    row = run(case, *arguments, "--cfg-options", "resq.policy.threshold=0.3")["rows"][0]
    assert (row["scheme"], row["precision"], row["interval"]) == ("dynamic", "W8A8->W8A{0,4,8}", 2)
    assert row["agreement"] is None


def test_the_calibrated_checkpoint_is_kept_with_a_work_dir(case: Path, tmp_path: Path) -> None:
    first = run(case, "--schemes", "resq", "--work-dir", str(tmp_path))["rows"]
    arguments = ["eval", str(case / "config.py"), "--checkpoint", str(tmp_path / "resq_calibrated.pth")]
    options = [
        "--schemes",
        "resq",
        "--json",
        str(case / "again.json"),
        "--cfg-options",
        "resq.calibration.dataset=None",
    ]
    assert main(arguments + options) == 0
    assert json.loads((case / "again.json").read_text())["rows"] == first


def test_data_root_goes_to_test_and_calibration_data(case: Path) -> None:
    found = prepare_config(config(case, case), data_root="elsewhere")
    assert found.test_dataloader.dataset.data_root == "elsewhere"
    assert found.resq.calibration.dataset.data_root == "elsewhere"


def test_agreement_of_poses_is_that_of_joints(case: Path) -> None:
    found = prepare_config(config(case, case, default_scope="mmpose"), agreement=True)
    assert found.test_evaluator[-1]["type"] == "resq_mmpose.JointAgreement"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere.pth"], "nowhere.pth: there is no such file"),
        (["--precision", "W8A8->W4A99"], "99"),
        (["--cfg-options", "resq.intervall=3"], "Did you mean 'interval'"),
    ],
)
def test_errors_are_one_line(
    case: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    checkpoint = [] if "--checkpoint" in arguments else ["--checkpoint", str(case / "float.pth")]
    assert main(["eval", str(case / "config.py"), *checkpoint, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_config_without_test_data(case: Path) -> None:
    cfg = config(case, case)
    cfg.test_dataloader = None
    with pytest.raises(ConfigError, match="no test_dataloader"):
        prepare_config(cfg)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interval", "0"], "interval=0 is not allowed; write a whole number of at least 1"),
        (["--precision", ""], "cannot read the precision ''"),
        (["--data-root", "nowhere"], "nowhere/val does not exist"),
        (["--cfg-options", "resq.calibration.dataset.data_root=nowhere"], "nowhere/calib does not exist"),
        (["--cfg-options", "test_dataloader.dataset.data_prefix.seg_map_path=no"], "no label *.png in"),
        (
            ["--data-root", "nowhere", "--cfg-options", "test_dataloader.dataset.type=CityscapesDataset"],
            "No such file or directory: 'nowhere/val'; its data_root is 'nowhere': write --data-root DIR",
        ),
        (
            [
                *("--schemes", "float", "--cfg-options", "test_dataloader.dataset.type=CityscapesDataset"),
                "test_dataloader.dataset.ann_file=nowhere.txt",
            ],
            "cannot be built: AssertionError: Failed to load `ann_file`",
        ),
        (["--cfg-options", "test_dataloader.dataset.type=Nope"], "cannot be built: KeyError"),
        (["--cfg-options", "resq.backend=nope"], "backend='nope' is not installed; found aimet, brevitas, torch."),
        (["--work-dir", "/proc/nowhere"], "cannot make the folder /proc/nowhere"),
    ],
)
def test_what_the_data_or_a_setting_lacks_is_one_line(
    case: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    checkpoint = ["--checkpoint", str(case / "float.pth"), "--schemes", "resq"]
    assert main(["eval", str(case / "config.py"), *checkpoint, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_work_dir_is_checked_before_anything_runs(case: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("resq_mmengine.zoo.load_config", lambda _: pytest.fail("the config is read"))
    arguments = ["--checkpoint", str(case / "float.pth"), "--work-dir", str(tmp_path / "file" / "below")]
    assert main(["eval", str(case / "config.py"), *arguments]) == 2


def test_intervals_longer_than_the_clips_are_told(case: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = run(case, "--schemes", "resq", "--interval", "6")["rows"][0]
    assert row["accuracy_by_position"][4:] == [None, None]
    assert "T = 6, but no labelled frame came at position 4, 5 of an interval" in caplog.text


def test_a_bar_tells_the_time_that_is_left(case: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN a terminal, WHILE what the toolkits print is kept back."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(case, "--schemes", "float", "resq")
    shown = capsys.readouterr().out
    assert "resq: calibrating" in shown
    assert "/4" in shown
    assert "left" in shown


def test_a_constant_net_is_told(case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.load(case / "float.pth")["state_dict"]
    state = {key: value * 0 if "conv_seg" in key else value for key, value in state.items()}
    state["decode_head.conv_seg.bias"][3] = 1.0
    torch.save({"state_dict": state}, tmp_path / "constant.pth")
    arguments = ["--checkpoint", str(tmp_path / "constant.pth"), "--schemes", "frame", "--agreement"]
    assert main(["eval", str(case / "config.py"), *arguments]) == 0
    assert "the float model gives every pixel one and the same label" in caplog.text
