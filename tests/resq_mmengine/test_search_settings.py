"""``resq = dict(search=dict(...))``: a config that finds its own plan."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.runner import Runner
from resq_mmengine.hook import ResQHook
from resq_mmengine.settings import read_settings
from tiny_video import config, make_frames

from resq_plugin import read_plan
from resq_plugin.cli import main
from resq_plugin.errors import ConfigError
from resq_plugin.method import residual_layers
from resq_plugin.planning.trial import Trials

pytestmark = pytest.mark.filterwarnings("ignore")

TARGET = {
    "weight_bits": (4, 8),
    "activation_bits": (4, 8),
    "thresholds": (0.1,),
    "intervals": (3,),
    "references": ("running",),
}
SEARCH = {"max_drop": 40.0, "target": TARGET}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames and a float checkpoint."""
    folder = tmp_path_factory.mktemp("searching")
    make_frames(folder, "calib", 6)
    make_frames(folder, "val", 4)
    torch.manual_seed(0)
    torch.save({"state_dict": runner(folder).model.state_dict(), "meta": {}}, folder / "float.pth")
    return folder


def runner(folder: Path, **search: Any) -> Runner:
    cfg = config(folder, folder / "work")
    if search:
        cfg.resq.pop("precision")
        cfg.resq.pop("interval")
        cfg.resq.search = search
        cfg.load_from = str(folder / "float.pth")
    else:
        cfg.resq = None
    return Runner.from_cfg(cfg)


@pytest.fixture(scope="module")
def tested(case: Path) -> tuple[Runner, dict[str, float]]:
    run = runner(case, **SEARCH)
    return run, run.test()


def hook_of(run: Runner) -> ResQHook:
    return next(hook for hook in run.hooks if isinstance(hook, ResQHook))


def test_a_test_finds_the_plan_runs_it_and_leaves_it(case: Path, tested: tuple[Runner, dict[str, float]]) -> None:
    run, metrics = tested
    plan = read_plan(case / "work" / "plan.json")
    assert plan.interval == 3
    assert plan.calibration.candidates == 5  # of the config
    layers = residual_layers(run.model)
    for name, layer in layers.items():
        assert (layer.settings.keyframe, layer.settings.residual) == plan.precision_of(name)
    assert hook_of(run).settings.config == plan  # type: ignore[union-attr]
    assert {"seg/mIoU", "seg/mIoU_t0", "seg/mIoU_t2", "resq/gbops_per_frame"} <= metrics.keys()
    assert metrics["resq/gbops_residual"] < metrics["resq/gbops_keyframe"]
    front = json.loads((case / "work" / "front.json").read_text())
    assert front["goal"] == "max_drop=40"
    assert plan.to_dict() in [row["config"] for row in front["front"]]


def test_a_second_run_measures_nothing_again_and_takes_the_calibrated_checkpoint(
    case: Path, tested: tuple[Runner, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resq_plugin.planning.measuring.observe", None)
    monkeypatch.setattr(Trials, "_measure", None)
    assert runner(case, **SEARCH).test() == tested[1]
    again = runner(case, **SEARCH)
    again._load_from = str(case / "work" / "resq_calibrated.pth")
    assert again.test() == tested[1]


@pytest.mark.slow
def test_a_changed_wish_is_searched_for_and_the_earlier_plan_is_kept(
    case: Path, tested: tuple[Runner, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = case / "work"
    plan = (work / "plan.json").read_text()
    assert runner(case, **SEARCH | {"max_drop": 100.0}).test()  # of the same measurements
    assert not list(work.glob("earlier-*"))
    plain = (work / "plan.json").read_text()
    runner(case, **SEARCH | {"target": TARGET | {"activation_bits": (8,)}}).test()
    (earlier,) = work.glob("earlier-*")
    assert (earlier / "plan.json").read_text() == plain
    found = read_plan(work / "plan.json")
    assert {bits for p in (found.keyframe, found.residual) if p for bits in p.pool} <= {0, 8}
    monkeypatch.setattr("resq_plugin.planning.measuring.observe", None)
    monkeypatch.setattr(Trials, "_measure", None)
    assert runner(case, **SEARCH).test() == tested[1]
    assert (work / "plan.json").read_text() == plan


@pytest.mark.slow
def test_the_command_evaluates_it_beside_float_and_w8a8(case: Path, tested: tuple[Runner, dict[str, float]]) -> None:
    cfg = config(case, case / "work")
    cfg.resq.search = SEARCH  # over the precision and T of a recipe
    cfg.dump(case / "searching.py")
    out, checkpoint = case / "eval.json", str(case / "float.pth")
    where = ["--work-dir", str(case / "work"), "--json", str(out)]
    assert main(["eval", str(case / "searching.py"), "--checkpoint", checkpoint, *where]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["scheme"] for row in rows][:2] == ["float", "frame"]
    assert rows[1]["precision"] == "W8A8"
    plan = read_plan(case / "work" / "plan.json")
    assert (rows[2]["precision"], rows[2]["interval"]) == (plan.notation, plan.interval)
    assert rows[2]["gbops_per_frame"] == pytest.approx(tested[1]["resq/gbops_per_frame"])
    assert main(["eval", str(case / "searching.py"), "--checkpoint", checkpoint, "--precision", "W8A8->W8A8",
                 "--schemes", "resq", "--json", str(out)]) == 0  # fmt: skip
    assert json.loads(out.read_text())["rows"][0]["precision"] == "W8A8->W8A8"


def test_the_search_command_takes_what_the_config_asks_for(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = Config.fromfile(case / "searching.py") if (case / "searching.py").exists() else config(case, case / "work")
    cfg.resq.search = SEARCH
    cfg.resq.exclude = ["decode_head.conv_seg"]
    cfg.dump(case / "wish.py")
    arguments = ["search", str(case / "wish.py"), "--checkpoint", str(case / "float.pth"), "--video"]
    assert main([*arguments, str(case / "calib"), "--out", str(case / "own"), "--activation-bits", "8"]) == 0
    plan = read_plan(case / "own" / "plan.json")
    assert plan.exclude == ("decode_head.conv_seg",)
    assert {bits for p in (plan.keyframe, plan.residual) if p for bits in p.pool} <= {0, 8}  # the option wins
    assert plan.interval == 3
    assert "of the bit operations of W8A8" in capsys.readouterr().out


def test_what_is_found_is_not_taken_from_the_config(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settings = read_settings({"precision": "W8A8->W4A4", "interval": 5, "exclude": ["a"], "search": SEARCH})
    assert "resq.search finds precision, interval" in caplog.text
    assert settings is not None
    assert settings.search is not None
    assert settings.search.goal.max_drop == 40.0
    assert settings.config.exclude == ("a",)
    assert read_settings({"precision": "W8A8", "search": None}).search is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (0.5, r"search=0.5 must be a dict such as search=dict\(max_drop=0.5\)"),
        ({}, "say what is asked: max_drop=0.5"),
        ({"max_dorp": 1}, "unknown setting search.max_dorp. Did you mean 'max_drop'?"),
        ({"max_drop": -1}, "max_drop=-1 is not allowed"),
        ({"max_drop": 1, "target": {"weigth_bits": (4,)}}, "unknown setting target.weigth_bits"),
        ({"max_drop": 1, "held_out": 2}, "search.held_out=2 is not allowed"),
        ({"max_drop": 1, "clips": 1}, "search.clips=1 is not allowed; write a whole number of at least 2"),
    ],
)
def test_impossible_wishes_of_a_config_are_told(search: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings({"search": search})


def test_no_clips_and_nothing_found_are_told_before_anything_is_measured(case: Path) -> None:
    cfg = config(case, case / "none")
    cfg.resq = {"search": SEARCH}
    cfg.load_from = str(case / "float.pth")
    with pytest.raises(ConfigError, match=r"resq.search needs clips to look at, .*calibration=dict\(dataset="):
        Runner.from_cfg(cfg).test()
    with pytest.raises(ConfigError, match=r"no plan does what was asked \(max_gbops=1e-09\)"):
        runner(case, max_gbops=1e-9, target=TARGET).test()
