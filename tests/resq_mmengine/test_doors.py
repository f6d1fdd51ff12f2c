"""One checkpoint format: whoever writes a calibrated model, every door reads it; and the frames that export takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from films import encode, sound

pytest.importorskip("mmseg")
pytest.importorskip("onnxruntime")

from mmengine.config import Config
from mmengine.runner import Runner
from resq_mmengine.zoo import FrameModel, build_model
from tiny_video import SIZE, config, dataset, make_frames, model_config

from resq_plugin import ResQConfig, calibrate, convert, load, save_checkpoint
from resq_plugin.cli import main
from resq_plugin.export.golden import Golden
from resq_plugin.export.manifest import GOLDEN
from resq_plugin.method import residual_layers

pytestmark = pytest.mark.filterwarnings("ignore")
PRECISION = "W8A8->W4A8"
SEARCH = {"samples": 4, "candidates": 3, "recheck": 0}
PIPELINE = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, float weights, a config for tests and one for training."""
    folder = tmp_path_factory.mktemp("doors")
    make_frames(folder, "calib", 4)
    make_frames(folder, "train", 6)
    make_frames(folder, "val", 16)
    base = config(folder, folder, resq__precision=PRECISION)
    base.resq.calibration.update(SEARCH)
    base.dump(folder / "config.py")
    torch.manual_seed(0)
    torch.save({"state_dict": build_model(base).state_dict()}, folder / "float.pth")
    return folder


def training_config(case: Path, folder: Path) -> Config:
    base = config(case, folder)
    settings = {"precision": PRECISION, "interval": 2, "calibration": {**SEARCH, "dataset": dataset(case, "calib")}}
    train = {
        "batch_size": 2,
        "num_workers": 0,
        "sampler": {"type": "resq_mmengine.ClipSampler", "shuffle": True},
        "batch_sampler": {"type": "resq_mmengine.IntervalBatchSampler"},
        "dataset": dataset(case, "train"),
    }
    model = {"_delete_": True, "type": "resq_mmengine.ResQModel", "architecture": model_config(), "resq": settings}
    changes: dict[str, Any] = {
        "resq": None,
        "model": model,
        "train_dataloader": train,
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 1},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}},
        "default_hooks__checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 1},
        "load_from": str(case / "float.pth"),
    }
    found = config(case, folder, **changes)
    assert base.test_dataloader == found.test_dataloader
    return found


def by_save_checkpoint(case: Path, folder: Path) -> Path:
    model = FrameModel(build_model(case / "config.py"))
    frames = [torch.randn(1, 3, *SIZE) for _ in range(3)]
    convert(model, ResQConfig.parse(PRECISION, calibration=SEARCH), example=frames[0])
    calibrate(model, [frames])
    save_checkpoint(model, folder / "saved.pth")
    return folder / "saved.pth"


def by_eval(case: Path, folder: Path) -> Path:
    arguments = ["--checkpoint", str(case / "float.pth"), "--schemes", "resq", "--work-dir", str(folder)]
    assert main(["eval", str(case / "config.py"), *arguments]) == 0
    return folder / "resq_calibrated.pth"


def by_training(case: Path, folder: Path) -> Path:
    runner = Runner.from_cfg(training_config(case, folder))
    runner.train()
    return folder / "iter_1.pth"


def by_compare(case: Path, folder: Path) -> Path:
    arguments = ["--checkpoint", str(case / "float.pth"), "--video", str(case / "val"), "--precision", PRECISION]
    assert main(["compare", str(case / "config.py"), *arguments, "--out", str(folder)]) == 0
    (found,) = (folder / "checkpoints").glob("*.pth")
    return found


@pytest.mark.parametrize("write", [by_save_checkpoint, by_eval, by_training, by_compare])
def test_what_any_door_writes_every_door_reads(
    write: Callable[[Path, Path], Path], case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write(case, tmp_path / "written")
    scales = torch.load(checkpoint, weights_only=False)["state_dict"]
    scales = {key: value for key, value in scales.items() if key.endswith("quantizer.scale")}
    assert scales

    model = load(checkpoint, FrameModel(build_model(case / "config.py")))
    assert {key: model.state_dict()[key] for key in scales} == scales

    out, rows = tmp_path / "out", tmp_path / "rows.json"
    common = ["--checkpoint", str(checkpoint)]
    assert main(["export", str(case / "config.py"), *common, "--out", str(out), "--frames", str(case / "val")]) == 0
    assert main(["verify", str(out)]) == 0
    layers = len(residual_layers(model))
    assert f"of {residual_config(model)}, {layers} layers" in " ".join(capsys.readouterr().out.split())

    interval = str(residual_config(model).interval)
    options = ["--schemes", "resq", "--interval", interval, "--cfg-options", "resq.calibration.dataset=None"]
    assert main(["eval", str(case / "config.py"), *common, "--json", str(rows), *options]) == 0
    assert json.loads(rows.read_text())["rows"][0]["precision"] == PRECISION


def residual_config(model: torch.nn.Module) -> ResQConfig:
    return next(iter(residual_layers(model).values())).settings.config


def test_a_config_for_training_is_read_by_the_commands(case: Path, tmp_path: Path) -> None:
    """GIVEN a model of the type ResQModel, THEN its architecture and its settings are taken."""
    checkpoint = by_training(case, tmp_path / "train")
    training_config(case, tmp_path).dump(tmp_path / "train.py")
    common = [str(tmp_path / "train.py"), "--checkpoint", str(checkpoint)]
    assert main(["export", *common, "--out", str(tmp_path / "out")]) == 0
    assert main(["eval", *common, "--schemes", "resq", "--json", str(tmp_path / "rows.json")]) == 0
    row = json.loads((tmp_path / "rows.json").read_text())["rows"][0]
    assert (row["precision"], row["interval"]) == (PRECISION, 2)


# --- frames of an export -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(case: Path) -> Path:
    return by_save_checkpoint(case, case)


def export(case: Path, saved: Path, out: Path, *more: str) -> int:
    return main(["export", str(case / "config.py"), "--checkpoint", str(saved), "--out", str(out), *more])


def golden_frames(out: Path) -> list[np.ndarray]:
    return list(Golden.read(out / GOLDEN).frames)


def test_export_takes_a_folder_a_video_the_configs_clips_and_arrays(case: Path, saved: Path, tmp_path: Path) -> None:
    assert export(case, saved, tmp_path / "folder", "--frames", str(case / "val")) == 0
    frames = golden_frames(tmp_path / "folder")
    assert [frame.shape for frame in frames] == [(1, 3, *SIZE)] * 10

    film = encode(tmp_path / "film.mp4", frames=12)
    assert export(case, saved, tmp_path / "film", "--frames", str(film), "--shape", "48", "64") == 0
    assert [frame.shape for frame in golden_frames(tmp_path / "film")] == [(1, 3, 48, 64)] * 10

    assert export(case, saved, tmp_path / "config") == 0  # 4 frames of calib, then goes on with the last one
    found = golden_frames(tmp_path / "config")
    model = build_model(case / "config.py")
    from mmengine.registry import DATASETS, DefaultScope
    from resq_mmengine.calibration import ClipLoader

    with DefaultScope.overwrite_default_scope("mmseg"):
        expected = ClipLoader(DATASETS.build(dataset(case, "calib")), model, 4)[0]
    for ours, theirs in zip(found[:4], expected, strict=True):
        step = float(theirs.abs().max()) / 127
        assert float((torch.from_numpy(ours) - theirs).abs().max()) <= 0.51 * step  # packed in 8 bits

    np.savez(tmp_path / "clip.npz", np.concatenate(frames))
    assert export(case, saved, tmp_path / "array", "--frames", str(tmp_path / "clip.npz")) == 0
    assert all(np.allclose(a, b) for a, b in zip(golden_frames(tmp_path / "array"), frames, strict=True))


def test_frames_that_are_none_get_one_line(
    case: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    image = next((case / "val").glob("*.png"))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(2))
    np.save(tmp_path / "flat.npy", np.zeros((4, 3, 32), np.float32))
    single = tmp_path / "single"
    single.mkdir()
    (single / image.name).write_bytes(image.read_bytes())
    for frames, more, text in [
        (tmp_path / "empty", (), "holds no frame (.png"),
        (image, (), "is an image, not a video; give its folder"),
        (sound(tmp_path / "sound.m4a"), (), "has no video stream, only audio"),
        (tmp_path / "none.mp4", (), "does not exist"),
        (tmp_path / "two.npz", (), "holds 2 arrays (a, b); write one of frames (T, 3, H, W)"),
        (tmp_path / "flat.npy", (), "holds (4, 3, 32) float32; write frames (T, 3, H, W) float32"),
        (single, (), "has 1 frame; residual frames need at least two"),
        (case / "val", ("--cfg-options", "resq"), "--cfg-options resq: "),
    ]:
        assert export(case, saved, tmp_path / "out", "--frames", str(frames), *more) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert export(case, saved, tmp_path / "out", "--shape", "64", "64") == 2
    assert "are 32 48 after the config's pipeline" in capsys.readouterr().err


def test_noise_is_announced_with_the_reason(
    case: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ("--cfg-options", "resq.calibration.dataset.data_root=nowhere")
    assert export(case, saved, tmp_path / "out", *gone) == 2
    assert "no --frames and no --shape, and the config's calibration clips cannot be read" in capsys.readouterr().err
    assert export(case, saved, tmp_path / "out", "--shape", *map(str, SIZE), *gone) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "WARNING: no --frames: the golden clip is noise" in shown
    assert "the config's calibration clips cannot be read" in shown
