"""``resq search`` on a folder of frames: the plan it leaves runs through every door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.runner import Runner
from resq_mmengine.own_model import OwnModel
from tiny_video import config, make_frames

from resq_plugin import load, read_plan
from resq_plugin.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, a float checkpoint and a config file without the fragment."""
    folder = tmp_path_factory.mktemp("search")
    make_frames(folder, "calib", 6)
    make_frames(folder, "val", 6)
    torch.manual_seed(0)
    cfg = config(folder, folder)
    torch.save({"state_dict": Runner.from_cfg(cfg).model.state_dict(), "meta": {}}, folder / "float.pth")
    cfg.default_hooks.pop("resq")
    cfg.pop("resq")
    cfg.dump(folder / "config.py")
    return folder


@pytest.fixture(scope="module")
def plan(case: Path) -> Path:
    """The folder that a search leaves."""
    out = case / "out"
    target = ["--weight-bits", "4", "8", "--activation-bits", "4", "8", "--threshold", "0.1", "--interval", "3"]
    arguments = [
        *target,
        "--reference",
        "running",
        "--max-drop",
        "40",
        "--out",
        str(out),
        "--json",
        str(case / "s.json"),
    ]
    assert main(["search", *model(case), "--video", str(case / "calib"), *arguments]) == 0
    return out


def model(case: Path) -> list[str]:
    return [str(case / "config.py"), "--checkpoint", str(case / "float.pth")]


def test_a_search_leaves_a_plan_the_front_and_a_calibrated_checkpoint(case: Path, plan: Path) -> None:
    config = read_plan(plan / "plan.json")
    assert config.interval == 3
    assert config.reference == "running"
    rows = json.loads((case / "s.json").read_text())
    assert rows["rows"] == json.loads((plan / "front.json").read_text())["front"]
    assert "of the bit operations of W8A8" in rows["finding"]
    assert config.to_dict() in [row["config"] for row in rows["rows"]]
    net = OwnModel(str(case / "config.py"), case / "float.pth", [case / "calib"]).network
    assert load(plan / "plan.pth", net) is net
    page = (plan / "report.html").read_text(encoding="utf-8")
    assert "The fewest bits for config on calib" in page
    assert rows["finding"] in page


def test_raw_outputs_are_read_as_the_model_predicts(case: Path) -> None:
    own = OwnModel(str(case / "config.py"), case / "float.pth", [case / "calib"], size=(24, 40))
    with torch.no_grad():
        for frame in own.frames[0]:
            assert torch.equal(own.read(own.raw(frame)), own.predict(own.model(frame)))


def test_the_fragment_is_a_base_of_a_config_that_is_evaluated(case: Path, plan: Path) -> None:
    source = case / "planned.py"
    source.write_text(f"_base_ = ['config.py', '{plan / 'plan.py'}']\n")
    found = Config.fromfile(source)
    calibration = config(case, case).resq.calibration.to_dict()
    options = ["--cfg-options", f"resq.calibration.dataset.data_root={case}"]
    source.write_text(source.read_text() + f"resq = dict(calibration={calibration!r})\n")
    out = case / "eval.json"
    arguments = ["--checkpoint", str(case / "float.pth"), "--schemes", "resq", "--json", str(out), *options]
    assert main(["eval", str(source), *arguments]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["precision"] == found.resq.precision == read_plan(plan / "plan.json").notation
    assert row["interval"] == 3


def test_the_checkpoint_of_a_plan_is_exported_and_plays_as_torch(case: Path, plan: Path) -> None:
    pytest.importorskip("onnxruntime")
    from resq_plugin.export import OrtStream, verify

    out = case / "exported"
    where = ["--checkpoint", str(plan / "plan.pth"), "--out", str(out), "--frames", str(case / "val")]
    assert main(["export", str(case / "config.py"), *where]) == 0
    checked = verify(out, threads=1)
    assert checked.passed
    assert checked.agreement > 99
    config = read_plan(plan / "plan.json")
    assert OrtStream(out, threads=1).interval == config.interval
    assert {path.name for path in out.glob("*.onnx")} == {"keyframe.onnx", "residual.onnx"}


def test_a_plan_is_compared_with_the_rest(case: Path, plan: Path) -> None:
    out = case / "compare.json"
    where = ["--video", str(case / "val"), "--out", str(case / "compare"), "--json", str(out)]
    more = ["--precision", "W8A8", "--plan", str(plan / "plan.json"), "--calibrate", str(case / "calib")]
    assert main(["compare", *model(case), *where, *more]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["scheme"] for row in rows[:2]] == ["float", "frame"]
    assert rows[2]["config"] == read_plan(plan / "plan.json").to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what is asked: max_drop=0.5"),
        (["--max-drop", "1", "--interval", "9"], "1 clips of 9 frames cannot be parted by --held-out 0.25"),
        (["--max-drop", "1", "--weight-bits", "99", "--activation-bits", "99"], "99 bits"),
        (["--max-drop", "1", "--max-gbops", "-1"], "max_gbops=-1.0 is not allowed"),
    ],
)
def test_what_cannot_be_is_one_line(
    case: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *model(case), "--video", str(case / "calib"), "--out", str(case / "no"), *arguments]) == 2
    assert message in capsys.readouterr().err
