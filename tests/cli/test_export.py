"""``resq export`` and ``resq verify``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build, video

from resq_plugin import ResQConfig, calibrate, convert, save_checkpoint
from resq_plugin.cli import main
from resq_plugin.export import export_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolkits' own
DDRNET = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
SHAPE = (64, 128)
OPTIONS = ["--cfg-options", "model.decode_head.num_classes=3"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A calibrated checkpoint and a clip."""
    pytest.importorskip("mmseg")
    from resq_mmengine.zoo import FrameModel, build_model

    folder = tmp_path_factory.mktemp("command")
    torch.manual_seed(0)
    model = FrameModel(build_model(DDRNET, {"model.decode_head.num_classes": 3}))
    frames = torch.randn(1, 3, *SHAPE) + 0.1 * torch.randn(3, 3, *SHAPE)
    config = ResQConfig.parse("W8A8->W4A8", calibration={"samples": 2, "candidates": 3, "recheck": 0})
    convert(model, config, example=frames[:1])
    calibrate(model, [frames])
    save_checkpoint(model, folder / "calibrated.pth")
    np.save(folder / "clip.npy", frames.numpy())
    return folder / "calibrated.pth", folder / "clip.npy"


def export(files: tuple[Path, Path], out: Path, *more: str) -> int:
    checkpoint, clip = files
    shape = ["--shape", *map(str, SHAPE), *OPTIONS]
    return main(
        ["export", DDRNET, "--checkpoint", str(checkpoint), "--frames", str(clip), "--out", str(out), *shape, *more]
    )


@pytest.mark.slow
def test_export_of_a_zoo_model(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(files, tmp_path / "out", "--json", str(tmp_path / "export.json")) == 0

    assert "keyframe and residual of W8A8->W4A8 (T=3), 55 layers" in capsys.readouterr().out
    assert json.loads((tmp_path / "export.json").read_text())["interval"] == 3


def test_verify_tells_lsb_and_fails_on_a_changed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export_model(build("plain", "W8A8->W4A8"), video(3), out, encodings=())

    assert main(["verify", str(out), "--json", str(tmp_path / "verify.json")]) == 0
    assert "argmax of the 10-frame clip as one stream: 100.00 % equal" in capsys.readouterr().out
    found = json.loads((tmp_path / "verify.json").read_text())["cpu"]
    assert max(tensor["lsb"] for tensor in found["parts"] + found["tensors"]) < 1e-3
    assert found["agreement"] == 100

    (out / "residual.onnx").write_bytes(b"changed")
    assert main(["verify", str(out)]) == 2
    assert "residual.onnx was changed after the export" in capsys.readouterr().err


def test_the_users_mistakes_get_one_line(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, clip = files
    np.save(tmp_path / "double.npy", np.zeros((2, 3, *SHAPE)))
    torch.save({"state_dict": {}}, tmp_path / "float.pth")
    for wrong, text in [
        ((tmp_path / "float.pth", clip), "was not written by resq_plugin.save_checkpoint"),
        ((tmp_path / "none.pth", clip), "does not exist"),
        ((checkpoint, tmp_path / "double.npy"), "write frames (T, 3, 64, 128) float32"),
        ((checkpoint, tmp_path / "none.npy"), "cannot read"),
    ]:
        assert export(wrong, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert main(["verify", str(tmp_path)]) == 2
    assert "is no exported folder" in capsys.readouterr().err
