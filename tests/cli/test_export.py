"""``resq export`` and ``resq verify``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build, video
from torch import nn

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


@pytest.mark.slow
def test_noise_is_announced_loudly(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="the extra htp is not installed")
    checkpoint, _ = files
    command = ["export", DDRNET, "--checkpoint", str(checkpoint), "--shape", *map(str, SHAPE), *OPTIONS]
    for target, text in (("cpu", "the golden clip is noise"), ("htp", "the HTP's ranges of additions")):
        assert main([*command, "--out", str(tmp_path / target), "--target", target]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "WARNING: no --frames: " in shown
        assert text in shown
        assert "--frames clip.npy" in shown
    assert export(files, tmp_path / "real") == 0
    assert "WARNING" not in capsys.readouterr().out


class Long(nn.Module):
    """Layers with names longer than a terminal is wide."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        name = "a_module_with_a_name_that_says_all_that_its_author_thought_of_and_that_goes_on_and_on"
        self.net = nn.ModuleDict({name: nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(layers)))})

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        for stage in self.net.values():
            frame = stage(frame)
        return frame


def test_verify_cuts_no_name_at_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    export_model(build(lambda: Long(1), "W8A8->W4A8"), video(3), tmp_path / "out", encodings=())

    assert main(["verify", str(tmp_path / "out"), "--json", str(tmp_path / "verify.json")]) == 0

    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    cells = [line.split("│")[3].strip() for line in shown.splitlines() if line.startswith("│")]
    parts = json.loads((tmp_path / "verify.json").read_text())["cpu"]["parts"]
    worst = next(part["name"] for part in parts if part["graph"] == "keyframe")
    assert len(worst) > 80
    assert worst in "".join(cells)


def test_a_clip_that_stands_still_proves_nothing_and_verify_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build("plain", "W8A8->W4A8")
    for clip, still in (([video(1)[0]] * 10, True), (video(10), False)):
        export_model(model, clip, tmp_path / "out", encodings=())
        assert main(["verify", str(tmp_path / "out")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert ("WARNING: all residual frames of the clip have the same output" in shown) is still


def test_like_layers_share_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="the extra htp is not installed")
    from resq_plugin.export import HtpConfig

    monkeypatch.setenv("COLUMNS", "80")
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(9))).eval()
    overrides = {"0": "W8A8->W8A8", **dict.fromkeys(("2", "3", "4"), "W8A8->W4A4")}
    model = build(net, "W8A8->W4A8", reference="quantized", overrides=overrides)
    export_model(model, video(10), tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))

    assert main(["verify", str(tmp_path / "out"), "--target", "htp", "--frames", "1"]) == 0

    lines = [line for line in capsys.readouterr().out.splitlines() if ": native " in line]
    assert [line.partition(" W8A8->")[0] for line in lines] == ["0", "5 layers, 1 to 8,", "3 layers (2, 3, 4)"]
    assert lines[1].endswith(
        "W4A8: native keyframe W int8, keyframe A int8, residual W int4, residual A int8; carried nothing"
    )
    assert lines[2].endswith("; carried residual A int8 (carries 4 bits, clipped)")


def test_the_users_mistakes_get_one_line(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, clip = files
    np.save(tmp_path / "double.npy", np.zeros((2, 3, *SHAPE)))
    torch.save({"state_dict": {}}, tmp_path / "float.pth")
    for wrong, text in [
        (
            (tmp_path / "float.pth", clip),
            "holds no ranges and no configuration of them; write it with resq_plugin.save_checkpoint",
        ),
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
