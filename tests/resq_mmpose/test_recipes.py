"""The paper's pose recipes, end to end through MMEngine's Runner on made-up data in the real layout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

pytest.importorskip("mmpose")

import resq_mmpose
from mmengine.config import Config
from mmengine.runner import Runner
from resq_mmengine.zoo import load_config

CONFIGS = Path(resq_mmpose.__file__).parent / "configs"
FRAMES = 5
pytestmark = [
    pytest.mark.filterwarnings("ignore:The metainfo config file:UserWarning"),
    pytest.mark.filterwarnings(r"ignore::Warning:(mmpose|mmengine|mmcv)\."),
]


def person(frames: int) -> np.ndarray:
    """Joints (2, 15, T) of a person that walks right."""
    rows, columns = np.linspace(21, 81, 15), np.where(np.arange(15) % 2, 31.0, 61.0)
    return np.stack([columns, rows])[:, :, None] + np.arange(frames) * np.array([4.0, 0.0])[:, None, None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of sub-JHMDB; in each split another one is in the test set."""
    root = tmp_path_factory.mktemp("jhmdb")
    rng = np.random.default_rng(0)
    videos = ("ball_a", "ball_b", "ball_c")
    for video in videos:
        images, joints = root / "Rename_Images/catch" / video, root / "joint_positions/catch" / video
        images.mkdir(parents=True)
        joints.mkdir(parents=True)
        background = rng.integers(0, 200, (100, 120, 3), dtype=np.uint8)
        for t in range(FRAMES):
            frame = background.copy()
            frame[20:82, 30 + 4 * t : 62 + 4 * t] = 230
            Image.fromarray(frame).save(images / f"{t + 1:05}.png")
        savemat(joints / "joint_positions.mat", {"pos_img": person(FRAMES)})
    (root / "sub_splits").mkdir()
    for split in (1, 2, 3):
        lines = [f"{video}.avi {2 if i == split - 1 else 1}" for i, video in enumerate(videos)]
        (root / f"sub_splits/catch_test_split_{split}.txt").write_text("\n".join(lines))
    return root


def tiny(name: str, root: Path, work: Path, **more: Any) -> Config:
    """A recipe on the made-up data: crops of 64, a short search, no weights from the network, no workers."""
    config = load_config(CONFIGS / f"{name}.py")
    data = f"{root}/"
    options: dict[str, Any] = {"work_dir": str(work), "log_level": "ERROR", "load_from": None}
    options["model.backbone.init_cfg"] = None
    size = (64, 64)
    decoder = {"input_size": size, "heatmap_size": (16, 16)}
    options |= {f"model.head.decoder.{key}": value for key, value in decoder.items()}
    for loader in ("val_dataloader", "test_dataloader"):
        options |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
        options |= {f"{loader}.dataset.data_root": data, f"{loader}.dataset.pipeline.2.input_size": size}
    if "resq" in config:
        search = {"samples": 2, "candidates": 2, "positions": 32, "recheck": 0, "dataset.data_root": data}
        search["dataset.pipeline.2.input_size"] = size
        options |= {f"resq.calibration.{key}": value for key, value in search.items()}
    config.merge_from_dict(options | more)
    return config


PTQ = {
    "jhmdb/resq_hrnet-w32_w8a8-w8a4_jhmdb-split1-256x256": ("W8A8->W8A4", "ball_a"),
    "jhmdb/resq_hrnet-w32_w8a8-w8a4_jhmdb-split2-256x256": ("W8A8->W8A4", "ball_b"),
    "jhmdb/resq_hrnet-w32_w8a8-w8a4_jhmdb-split3-256x256": ("W8A8->W8A4", "ball_c"),
    "jhmdb/dynamic_hrnet-w32_w8a8-w8a048_jhmdb-split1-256x256": ("W8A8->W8A{0,4,8}", "ball_a"),
    "jhmdb/dynamic_hrnet-w32_w8a8-w8a048_jhmdb-split2-256x256": ("W8A8->W8A{0,4,8}", "ball_b"),
    "jhmdb/dynamic_hrnet-w32_w8a8-w8a048_jhmdb-split3-256x256": ("W8A8->W8A{0,4,8}", "ball_c"),
    "jhmdb/dynamic_hrnet-w32_w8a8-w8a034_jhmdb-split1-256x256": ("W8A8->W8A{0,3,4}", "ball_a"),
}
QUICK = "jhmdb/resq_hrnet-w32_w8a8-w8a4_jhmdb-split2-256x256"
FLOAT = tuple(f"jhmdb/hrnet-w32_100e_jhmdb-split{split}-256x256" for split in (1, 2, 3))
POSETRACK = "posetrack18/resq_hrnet-w32_w8a8-w8a4_posetrack18-256x192"


def test_every_recipe_is_tested() -> None:
    names = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.py")}
    assert names == {*PTQ, *FLOAT, POSETRACK}


def run(config: Config) -> tuple[Runner, dict[str, float]]:
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    return runner, runner.test()


def frames_by_position(runner: Runner) -> dict[int, int]:
    """How many frames the run visited at each distance from the keyframe."""
    loader = runner.test_loop.dataloader
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    return Counter(position for interval in sampler.intervals() for position in range(len(interval)))


@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PTQ]
)
def test_recipes_by_ptq(name: str, root: Path, tmp_path: Path) -> None:
    precision, video = PTQ[name]
    config = tiny(name, root, tmp_path)
    runner, metrics = run(config)

    hook = next(hook for hook in runner.hooks if type(hook).__name__ == "ResQHook")
    assert (hook.settings.config.notation, hook.settings.config.interval) == (precision, 3)
    assert config.test_dataloader.dataset.split == config.resq.calibration.dataset.split
    assert frames_by_position(runner) == {0: 5, 1: 4, 2: 3}
    for t, frames in frames_by_position(runner).items():
        joints = metrics[f"PCK_t{t}"] * 15 * frames
        assert joints == pytest.approx(round(joints), abs=1e-6)
    assert metrics["PCK"] == pytest.approx(np.mean([metrics[f"PCK_t{t}"] for t in range(3)]))
    assert metrics["resq/gbops_keyframe"] > metrics["resq/gbops_residual"] > 0
    assert not config.model.test_cfg.flip_test
    assert runner.model.head.out_channels == 15
    assert video in (root / f"sub_splits/catch_test_split_{config.test_dataloader.dataset.split}.txt").read_text()


@pytest.mark.slow
def test_sweep_by_options(root: Path, tmp_path: Path) -> None:
    config = tiny(QUICK, root, tmp_path, **{"resq.precision": "W8A4->W8A3", "resq.interval": 4})
    _, metrics = run(config)
    # (32 + 3 · 24) / 4 of 32
    assert metrics["resq/gbops_per_frame"] == pytest.approx(metrics["resq/gbops_keyframe"] * 0.8125)
    assert "PCK_t3" in metrics


@pytest.mark.parametrize("name", [FLOAT[1], *(pytest.param(name, marks=pytest.mark.slow) for name in FLOAT[::2])])
def test_fine_tuning_recipes_train_and_validate(name: str, root: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "train_dataloader.batch_size": 5,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "train_dataloader.dataset.data_root": f"{root}/",
        "train_dataloader.dataset.pipeline.4.input_size": (64, 64),
        "train_dataloader.dataset.pipeline.5.encoder.input_size": (64, 64),
        "train_dataloader.dataset.pipeline.5.encoder.heatmap_size": (16, 16),
        "train_cfg.max_epochs": 1,
        "train_cfg.val_interval": 1,
        "default_hooks.logger.interval": 1,
        "default_hooks.checkpoint.interval": 1,
    }
    config = tiny(name, root, tmp_path, **more)
    runner = Runner.from_cfg(config)
    runner.train()

    assert config.optim_wrapper.optimizer.lr == 1e-3
    assert len(runner.message_hub.get_scalar("train/loss").data[0]) == 2  # 10 frames of 2 videos in batches of 5
    assert 0 <= runner.message_hub.get_scalar("val/PCK").current() <= 1
    state = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    assert state["head.final_layer.weight"].shape[0] == 15


def test_persons_of_posetrack_go_in_step(tmp_path: Path) -> None:
    images, people = [], []
    folder = tmp_path / "images/val/000001_mpii_test"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t in range(4):
        Image.fromarray(rng.integers(0, 256, (100, 120, 3), dtype=np.uint8)).save(folder / f"{t:06}.jpg")
        image = {"id": t, "frame_id": t, "vid_id": "000001", "is_labeled": True, "width": 120, "height": 100}
        images.append(image | {"file_name": f"images/val/000001_mpii_test/{t:06}.jpg"})
        for track in range(3):
            points = [v for joint in range(17) for v in (20.0 * track + joint, 20.0 + joint, 1)]
            ids = {"id": 10 * t + track, "image_id": t, "track_id": track, "category_id": 1}
            people.append(ids | {"keypoints": points, "bbox": [20.0 * track, 18.0, 24.0, 40.0]})
    values = {"images": images, "annotations": people, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"annotations/posetrack18_{split}.json").write_text(json.dumps(values))
    config = tiny(POSETRACK, tmp_path, tmp_path / "work")
    runner, metrics = run(config)

    assert config.test_dataloader.batch_size == 4
    # Three persons, 4 frames each, at every position that the clips have room for.
    assert frames_by_position(runner) == {0: 12, 1: 9, 2: 6}
    assert 0 <= metrics["PCK"] <= 1
