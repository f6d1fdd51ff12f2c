"""The paper's segmentation recipes, end to end through MMEngine's Runner on made-up data in the real layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")

import resq_mmseg
from mmengine.config import Config
from mmengine.runner import Runner
from resq_mmengine.zoo import FrameModel, build_model, load_config

from resq_plugin import ResQConfig, measure_cost

CONFIGS = Path(resq_mmseg.__file__).parent / "configs" / "cityscapes"
SIZE = (64, 128)
pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:(mmseg|mmengine|mmcv)\.")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snippets of each split: 30 frames of a square that moves over a ramp; the square is a car."""
    root = tmp_path_factory.mktemp("cityscapes")
    ramp = np.linspace(0, 160, SIZE[1], dtype=np.uint8)[None, :, None].repeat(SIZE[0], 0).repeat(3, 2)
    for split in ("train", "val"):
        images = root / "leftImg8bit_sequence" / split / "aachen"
        labels, pseudo = root / "gtFine" / split / "aachen", root / "pseudo" / split / "aachen"
        for folder in (images, labels, pseudo):
            folder.mkdir(parents=True)
        for sequence in range(2):
            for number in range(30):
                name = f"aachen_{sequence:06}_{number:06}"
                frame, label = ramp.copy(), np.zeros(SIZE, np.uint8)
                frame[20:44, number : number + 24], label[20:44, number : number + 24] = (220, 60 * sequence, 30), 13
                Image.fromarray(frame).save(images / f"{name}_leftImg8bit.png")
                Image.fromarray(label).save(pseudo / f"{name}.png")
                if number == 19:
                    Image.fromarray(label).save(labels / f"{name}_gtFine_labelTrainIds.png")
    return root


def tiny(name: str, root: Path, work: Path, **more: Any) -> Config:
    """A recipe on the made-up data: small frames, a short search, no weights from the network, no workers."""
    config = load_config(CONFIGS / f"{name}.py")
    data = f"{root}/"
    options: dict[str, Any] = {"work_dir": str(work), "log_level": "ERROR", "load_from": None}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        options |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
        options[f"{loader}.dataset.data_root"] = data
    settings = "resq" if config.resq is not None else "model.resq"
    search = {"samples": 2, "candidates": 2, "positions": 32, "recheck": 0, "dataset.data_root": data}
    options |= {f"{settings}.calibration.{key}": value for key, value in search.items()}
    small = (SIZE[1], SIZE[0])
    for pipeline in ("val_dataloader.dataset", "test_dataloader.dataset", f"{settings}.calibration.dataset"):
        options[f"{pipeline}.pipeline.1.scale"] = small
    config.merge_from_dict(options | more)
    return config


def run(config: Config) -> tuple[Runner, dict[str, float]]:
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    return runner, runner.test()


PTQ = {
    "resq_ddrnet_23-slim_w8a8-w4a4_cityscapes-1024x2048": ("W8A8->W4A4", 3),
    "resq_ddrnet_23_w8a8-w4a4_cityscapes-1024x2048": ("W8A8->W4A4", 3),
    "resq_ddrnet_39_w8a8-w4a4_cityscapes-1024x2048": ("W8A8->W4A4", 3),
    "resq_hrnet-w18-small_w4a4-w3a3_cityscapes-1024x2048": ("W4A4->W3A3", 3),
    "fig7_resq_ddrnet_23-slim_cityscapes-1024x2048": ("W8A8->W4A8", 3),
    "fig7_dynamic_ddrnet_23-slim_cityscapes-1024x2048": ("W8A8->W4A{0,4,8}", 3),
    "fig9_ddrnet_23-slim_w8a8-w4a4_cityscapes-1024x2048": ("W8A8->W4A4", 11),
}
QUICK = "fig7_dynamic_ddrnet_23-slim_cityscapes-1024x2048"
QAT = (
    "qat_ddrnet_23-slim_w8a8-w4a4_cityscapes-1024x1024",
    "qat_ddrnet_23_w8a8-w4a4_cityscapes-1024x1024",
    "qat_ddrnet_39_w8a8-w4a4_cityscapes-1024x1024",
    "qat_hrnet-w18-small_w4a4-w3a3_cityscapes-512x1024",
)


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(PTQ) | set(QAT)


@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PTQ]
)
def test_recipes_by_ptq(name: str, root: Path, tmp_path: Path) -> None:
    precision, interval = PTQ[name]
    runner, metrics = run(tiny(name, root, tmp_path))

    hook = next(hook for hook in runner.hooks if type(hook).__name__ == "ResQHook")
    assert (hook.settings.config.notation, hook.settings.config.interval) == (precision, interval)
    assert hook.settings.config.weights == ("tensor" if name.startswith("fig7") else "channel")
    # Two labelled frames, each at every position.
    assert len(hook.evaluation.by_distance["mIoU"]) == interval
    assert all(np.isfinite(metrics[f"mIoU_t{t}"]) for t in range(interval))
    assert metrics["mIoU"] == pytest.approx(np.mean([metrics[f"mIoU_t{t}"] for t in range(interval)]))
    assert metrics["resq/gbops_per_frame"] > metrics["resq/gbops_residual"] > 0
    assert (tmp_path / "resq_calibrated.pth").is_file()


@pytest.mark.slow
def test_sweeps_by_options(root: Path, tmp_path: Path) -> None:
    name = "fig7_resq_ddrnet_23-slim_cityscapes-1024x2048"
    more = {"resq.precision": "W8A8->W4A4", "resq.interval": 5}
    _, metrics = run(tiny(name, root, tmp_path, **more))

    assert {key for key in metrics if key.startswith("mIoU_t")} == {f"mIoU_t{t}" for t in range(5)}
    # (64 + 4 · 16) / 5 of 64
    assert metrics["resq/gbops_per_frame"] == pytest.approx(metrics["resq/gbops_keyframe"] * 0.4)


@pytest.mark.parametrize("name", [QAT[0], *(pytest.param(name, marks=pytest.mark.slow) for name in QAT[1:])])
def test_recipes_by_qat(name: str, root: Path, tmp_path: Path) -> None:
    more = {
        "train_dataloader.batch_size": 2,
        "train_dataloader.dataset.pipeline.2.scale": (SIZE[1], SIZE[0]),
        "train_dataloader.dataset.pipeline.2.ratio_range": (1.0, 2.0),
        "train_dataloader.dataset.pipeline.3.crop_size": SIZE,
        "model.architecture.data_preprocessor.size": SIZE,
        "model.architecture.backbone.init_cfg": None,
        "model.architecture.pretrained": None,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.checkpoint.interval": 2,
        "default_hooks.logger.interval": 1,
    }
    config = tiny(name, root, tmp_path, **more)
    assert config.optim_wrapper.optimizer.lr == 5e-4
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()

    after = runner.model.state_dict()
    changed = [key for key, value in before.items() if key in after and not torch.equal(value, after[key])]
    assert any("backbone" in key and key.endswith("weight") for key in changed)
    losses = runner.message_hub.get_scalar("train/loss")
    assert np.isfinite(losses.data[0]).all()
    assert (tmp_path / "iter_2.pth").is_file()


def test_the_snippets_of_a_recipe_are_read_as_mmseg_reads_the_labelled_images(root: Path, tmp_path: Path) -> None:
    config = tiny("resq_ddrnet_23-slim_w8a8-w4a4_cityscapes-1024x2048", root, tmp_path)
    kinds = [transform["type"] for transform in config.test_dataloader.dataset.pipeline]
    assert kinds == ["LoadImageFromFile", "Resize", "LoadAnnotations", "PackSegInputs"]
    assert config.test_dataloader.dataset.data_prefix.seg_map_path == "gtFine/val"


def test_ddrnet_39_has_the_published_size() -> None:
    """281.2 GMACs and 32.3 M parameters (DDRNet, Table 5); 9.0 and 3.2 T bit operations (ResQ, Table 2)."""
    config = load_config(CONFIGS / "resq_ddrnet_39_w8a8-w4a4_cityscapes-1024x2048.py")
    model = FrameModel(build_model(config))
    shape = (1, 3, 1024, 2048)
    cost = measure_cost(model, shape, ResQConfig.parse("W8A8->W4A4", interval=3))

    assert cost.macs / 1e9 == pytest.approx(281.2, abs=0.1)
    assert cost.bops_per_frame / 1e12 == pytest.approx(9.0, abs=0.05)
    low = measure_cost(model, shape, ResQConfig.parse("W4A4->W3A3", interval=3))
    assert low.bops_per_frame / 1e12 == pytest.approx(3.2, abs=0.05)
    auxiliary = sum(p.numel() for name, p in model.named_parameters() if "aux" in name)
    assert (sum(p.numel() for p in model.parameters()) - auxiliary) / 1e6 == pytest.approx(32.3, abs=0.1)


def test_ddrnet_39_trains_with_its_auxiliary_head() -> None:
    from resq_mmseg.ddrnet39 import DDRNet39

    net = DDRNet39(channels=8, ppm_channels=8)
    frame = torch.randn(2, 3, 64, 128)
    auxiliary, fused = net(frame)
    assert (tuple(auxiliary.shape), tuple(fused.shape)) == ((2, 16, 8, 16), (2, 32, 8, 16))
    fused.mean().backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert not without
    assert tuple(net.eval()(frame).shape) == (2, 32, 8, 16)
