"""Checkpoints of `resq eval`, of the hook and of the labeller: what does not fit is never scored."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmseg")

from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from resq_mmengine.loading import fit_checkpoint
from tiny_video import config, make_frames, model_config

from resq_plugin import calibrate, convert, float_state_dict
from resq_plugin.cli import main
from resq_plugin.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, a float checkpoint and a config file."""
    folder = tmp_path_factory.mktemp("loading")
    make_frames(folder, "calib", 4)
    make_frames(folder, "val", 2)
    torch.manual_seed(0)
    cfg = config(folder, folder)
    torch.save({"state_dict": Runner.from_cfg(cfg).model.state_dict(), "meta": {}}, folder / "float.pth")
    cfg.dump(folder / "config.py")
    return folder


def evaluate(case: Path, checkpoint: Path, *more: str) -> int:
    arguments = ["--checkpoint", str(checkpoint), "--schemes", "float", "--json", str(case / "rows.json"), *more]
    return main(["eval", str(case / "config.py"), *arguments])


def accuracy(case: Path) -> float:
    return json.loads((case / "rows.json").read_text())["rows"][0]["accuracy"]


def stored(case: Path) -> State:
    return torch.load(case / "float.pth", weights_only=True)["state_dict"]


def of_another_net(state: State) -> State:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).state_dict()


def without_a_layer(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("decode_head.conv_seg")}


def of_other_classes(state: State) -> State:
    return state | {key: value.repeat_interleave(2, 0) for key, value in state.items() if "conv_seg" in key}


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (
            of_another_net,
            ["Missing keys: ", "backbone.", "Unexpected keys: 4 of the file's 4 (0.weight", "No name fits"],
        ),
        (lambda state: {f"teacher.{k}": v for k, v in state.items()}, ["No name fits", "prefix that is not known"]),
        (without_a_layer, ["Missing keys: 2 of the network's", "decode_head.conv_seg.weight"]),
        (lambda state: state | {"neck.conv.weight": torch.zeros(3)}, ["Unexpected keys: 1 of", "neck.conv.weight"]),
        (of_other_classes, ["size mismatch for decode_head.conv_seg.weight (22, ", "number of classes"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_scored(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[State], State], texts: list[str]
) -> None:
    torch.save({"state_dict": change(stored(case)), "meta": {}}, tmp_path / "other.pth")
    assert evaluate(case, tmp_path / "other.pth") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "other.pth does not fit EncoderDecoder" in error
    for text in texts:
        assert text in error


@pytest.mark.parametrize("kind", ["module.", "model.module.", "bare", "wrapped", "averaged beside"])
def test_known_prefixes_and_wrappers_are_taken_off_and_said(
    case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    assert evaluate(case, case / "float.pth") == 0
    expected, state = accuracy(case), stored(case)
    values: Any = {"state_dict": {kind + key: value for key, value in state.items()}}
    if kind == "bare":
        values = state
    elif kind == "wrapped":
        values = {"model": state, "epoch": 3}
    elif kind == "averaged beside":
        copies = {f"ema_{key.replace('.', '_')}": torch.zeros_like(value) for key, value in state.items()}
        values = {"state_dict": state | copies}
    torch.save(values, tmp_path / "other.pth")

    with caplog.at_level(logging.WARNING):
        assert evaluate(case, tmp_path / "other.pth") == 0
    assert accuracy(case) == expected
    told = {"bare": "", "wrapped": "", "averaged beside": "averaged weights"}.get(kind, f"the prefix {kind} was taken")
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)


def test_a_file_of_mmengines_own_training_is_scored(case: Path, tmp_path: Path) -> None:
    import copyreg

    assert evaluate(case, case / "float.pth") == 0
    expected = accuracy(case)
    ours = copyreg.dispatch_table.pop(HistoryBuffer)
    try:
        hub = {"log_scalars": {"loss": HistoryBuffer([0.5, 1.0], [1, 1])}, "resumed_keys": {}, "runtime_info": {}}
        values = {"state_dict": stored(case), "meta": {"seed": np.int64(1)}, "message_hub": hub}
        torch.save(values, tmp_path / "epoch_1.pth")
    finally:
        copyreg.dispatch_table[HistoryBuffer] = ours
    assert evaluate(case, tmp_path / "epoch_1.pth") == 0
    assert accuracy(case) == expected


class Unknown:
    """A class that a checkpoint must not build."""


def test_what_cannot_be_read_is_said_at_once(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "from_cfg", lambda *_: pytest.fail("the network is built before the file is read"))
    torch.save({"state_dict": stored(case), "extra": Unknown()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"no checkpoint")
    for name, text in (("a.pth", "Unknown beside its weights, which only a trusted"), ("b.pth", "is truncated or no")):
        begin = time.perf_counter()
        assert evaluate(case, tmp_path / name) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert text in error
        assert time.perf_counter() - begin < 30


def test_auxiliary_heads_may_be_missing_on_either_side(case: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mmengine.registry import MODELS

    head = model_config()["decode_head"] | {"in_index": 0, "in_channels": 8}
    torch.manual_seed(1)
    with_head = MODELS.build(model_config() | {"auxiliary_head": head})
    without = MODELS.build(model_config())
    for model, other in ((without, with_head), (with_head, without)):
        checkpoint = {"state_dict": other.state_dict()}
        with caplog.at_level(logging.WARNING):
            fit_checkpoint(model, checkpoint, "file.pth")
        model.load_state_dict(checkpoint["state_dict"], strict=True)
        assert "file.pth: auxiliary_head.* is not used in a test" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("backend", ["torch", "aimet", "brevitas"])
def test_calibrated_and_float_checkpoints_go_both_ways(backend: str) -> None:
    pytest.importorskip({"torch": "torch", "aimet": "aimet_torch", "brevitas": "brevitas"}[backend])
    from resq_plugin import ResQConfig

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()

    model = convert(net(), ResQConfig.parse("W8A8->W8A{0,4,8}", backend=backend))
    calibrate(model, [torch.randn(3, 3, 8, 8)])
    weights = float_state_dict(model)
    calibrated = {"state_dict": model.state_dict(), "meta": {"resq": model[0].settings.config.to_dict()}}

    into_float = dict(calibrated)
    fit_checkpoint(net(), into_float, "file.pth")
    assert into_float["state_dict"].keys() == weights.keys()
    fresh = convert(net(), model[0].settings.config)
    for checkpoint in (dict(calibrated), {"state_dict": weights}):
        wanted = checkpoint["state_dict"].keys()
        fit_checkpoint(fresh, checkpoint, "file.pth")
        assert checkpoint["state_dict"].keys() == wanted
    with pytest.raises(CheckpointError, match=r"Unexpected keys: .*0\.activation_norm"):
        fit_checkpoint(net(), {"state_dict": model.state_dict()}, "file.pth")  # nobody says that these are ranges


def test_training_starts_from_what_fits_and_says_what_does_not(
    case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mmengine.runner.loops import BaseLoop
    from resq_mmengine.hook import ResQHook

    class Loop(BaseLoop):
        def __init__(self) -> None:
            pass

        def run(self) -> None:
            pass

    runner = Runner.from_cfg(config(case, tmp_path))
    hook = next(hook for hook in runner.hooks if isinstance(hook, ResQHook))
    checkpoint = {"state_dict": without_a_layer(stored(case)), "meta": {}}
    with pytest.raises(CheckpointError, match="conv_seg"):
        hook.after_load_checkpoint(runner, checkpoint)
    runner._train_loop = Loop()
    with caplog.at_level(logging.WARNING):
        hook.after_load_checkpoint(runner, checkpoint)
    assert "training starts all the same, with what fits: " in caplog.text
    assert "Missing keys: 2 of the network's" in caplog.text
