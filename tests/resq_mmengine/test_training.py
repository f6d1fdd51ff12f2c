"""Quantization-aware training on whole intervals through MMEngine's Runner."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from resq_mmengine.training import ResQModel
from tiny_video import config, dataset, make_frames, model_config

from resq_plugin import stream
from resq_plugin.errors import ConfigError
from resq_plugin.method.layers import residual_layers

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    make_frames(folder, "calib", 6)
    make_frames(folder, "train", 7)
    make_frames(folder, "train", 6, sequence="0001TP", start=500)
    make_frames(folder, "val", 4)
    return folder


def training_config(videos: Path, folder: Path, *, iterations: int = 3, **changes: Any) -> Config:
    base = config(videos, folder)
    settings = base.resq.to_dict() | {"interval": 2}
    loader = base.test_dataloader.to_dict()
    train = {
        "batch_size": 2,
        "num_workers": 0,
        "sampler": {"type": "resq_mmengine.ClipSampler", "shuffle": True},
        "batch_sampler": {"type": "resq_mmengine.IntervalBatchSampler"},
        "dataset": dataset(videos, "train"),
    }
    wrapped = {"_delete_": True, "type": "resq_mmengine.ResQModel", "architecture": model_config(), "resq": settings}
    return config(
        *(videos, folder),
        resq=None,
        model=wrapped,
        train_dataloader=train,
        val_dataloader=loader,
        val_evaluator=base.test_evaluator,
        val_cfg={"type": "ValLoop"},
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": iterations},
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.05}},
        default_hooks__checkpoint={"type": "CheckpointHook", "by_epoch": False, "interval": iterations},
        **changes,
    )


def losses(runner: Runner) -> list[float]:
    return [value for value, _ in zip(*runner.message_hub.get_scalar("train/loss").data, strict=True)]


def test_training_lowers_the_loss_and_evaluates_as_video(videos: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(training_config(videos, tmp_path, iterations=20))
    model = runner.model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    runner.train()
    found = losses(runner)
    assert sum(found[-5:]) < sum(found[:5])
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.endswith("conv.weight") for name in changed)
    scalars = runner.message_hub.log_scalars
    assert {"val/seg/mIoU_t0", "val/seg/mIoU_t1", "val/resq/gbops_per_frame"} <= set(scalars)


def test_the_loss_is_the_mean_over_the_labelled_frames_of_the_stream(videos: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(training_config(videos, tmp_path, iterations=1))
    runner.train()
    model = runner.model.train()
    batch = next(iter(runner.train_dataloader))
    data = model.data_preprocessor(batch, True)
    found = model(data["inputs"], copy.deepcopy(data["data_samples"]), mode="loss")

    inner, expected = model.architecture, []
    with stream(inner) as video:
        for start in (0, 2):
            chunk, samples = data["inputs"][start : start + 2], data["data_samples"][start : start + 2]
            expected.append(video(chunk, samples, mode="loss")["decode.loss_ce"])
    assert torch.equal(found["decode.loss_ce"], (0 + expected[0] + expected[1]) / 2)

    for sample in data["data_samples"][:2]:
        sample.set_metainfo({"labelled": False})
    alone = model(data["inputs"], data["data_samples"], mode="loss")
    assert torch.equal(alone["decode.loss_ce"], expected[1])


def test_gradients_flow_from_residual_frames_into_their_keyframe(videos: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(training_config(videos, tmp_path, iterations=1))
    runner.train()
    model = runner.model.train()
    batch = next(iter(runner.train_dataloader))
    data = model.data_preprocessor(batch, True)
    inputs = data["inputs"].clone().requires_grad_()
    for sample in data["data_samples"][:2]:
        sample.set_metainfo({"labelled": False})
    sum(model(inputs, data["data_samples"], mode="loss")[key] for key in ("decode.loss_ce",)).backward()
    assert inputs.grad is not None
    assert float(inputs.grad[:2].abs().max()) > 0


def test_with_cp_gives_the_same_gradients(videos: Path, tmp_path: Path) -> None:
    """MMSeg's activation checkpointing (reentrant), WHEN only residual frames are labelled, too."""
    runner = Runner.from_cfg(training_config(videos, tmp_path, iterations=1))
    runner.train()
    model = runner.model.train()
    blocks = [module for module in model.modules() if hasattr(module, "with_cp")]
    assert blocks
    data = model.data_preprocessor(next(iter(runner.train_dataloader)), True)
    for labelled in (True, False):
        results = []
        for sample in data["data_samples"][:2]:
            sample.set_metainfo({"labelled": labelled})
        for with_cp in (False, True):
            for block in blocks:
                block.with_cp = with_cp
            model.zero_grad()
            inputs = data["inputs"].clone().requires_grad_()
            model(inputs, copy.deepcopy(data["data_samples"]), mode="loss")["decode.loss_ce"].backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            results.append(gradients | {"inputs": inputs.grad.clone()})
        expected, found = results
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6 + 1e-4 * float(gradient.abs().max())), (
                name
            )
        assert float(found["inputs"][:2].abs().max()) > 0


class Calibrated(Hook):
    """Remembers the scales that training starts from."""

    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        self.scales = scales_of(runner.model)


def scales_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("scale")}


@pytest.mark.parametrize("learn", [False, True])
def test_ranges_are_trained_only_when_asked_for(videos: Path, tmp_path: Path, learn: bool) -> None:
    runner = Runner.from_cfg(training_config(videos, tmp_path, model__learn_ranges=learn))
    start = Calibrated()
    runner.register_hook(start)
    runner.train()
    found = scales_of(runner.model)
    assert all(float(scale) > 0 for scale in start.scales.values())
    assert all(torch.equal(scale, start.scales[name]) for name, scale in found.items()) != learn


def test_its_checkpoints_are_those_of_the_wrapped_model(videos: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(training_config(videos, tmp_path))
    runner.train()
    trained = runner.message_hub.get_scalar("val/seg/mIoU").current()
    keys = torch.load(tmp_path / "iter_3.pth", weights_only=False)["state_dict"].keys()
    plain = Runner.from_cfg(config(videos, tmp_path / "b", resq__interval=2, load_from=str(tmp_path / "iter_3.pth")))
    assert plain.test()["seg/mIoU"] == pytest.approx(trained)
    assert keys == plain.model.state_dict().keys()
    again = Runner.from_cfg(training_config(videos, tmp_path / "c", load_from=str(tmp_path / "iter_3.pth")))
    assert again.test()["seg/mIoU"] == pytest.approx(trained)


def test_training_resumes_where_it_stopped(videos: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(training_config(videos, tmp_path))
    runner.train()
    resumed = Runner.from_cfg(
        training_config(videos, tmp_path / "b", iterations=4, load_from=str(tmp_path / "iter_3.pth"), resume=True)
    )
    before = {k: v.clone() for k, v in torch.load(tmp_path / "iter_3.pth", weights_only=False)["state_dict"].items()}
    resumed.train()
    assert resumed.iter == 4
    scale = next(name for name in before if name.endswith("keyframe_quantizer.scale"))
    assert torch.equal(resumed.model.state_dict()[scale], before[scale])


def test_an_averaged_model_has_the_ranges(videos: Path, tmp_path: Path) -> None:
    hook = {"type": "EMAHook", "ema_type": "ExponentialMovingAverage", "momentum": 0.5}
    runner = Runner.from_cfg(training_config(videos, tmp_path, custom_hooks=[hook]))
    runner.train()
    trained = runner.message_hub.get_scalar("val/seg/mIoU").current()
    plain = Runner.from_cfg(config(videos, tmp_path / "b", resq__interval=2, load_from=str(tmp_path / "iter_3.pth")))
    assert plain.test()["seg/mIoU"] == pytest.approx(trained)
    for layer in residual_layers(plain.model).values():
        assert all(quantizer.is_calibrated for quantizer in layer.activation_quantizers().values())


def test_single_frames_cannot_train(videos: Path, tmp_path: Path) -> None:
    cfg = training_config(videos, tmp_path)
    cfg.train_dataloader.pop("batch_sampler")
    with pytest.raises(ConfigError, match=r"whole intervals of 2 frames; write train_dataloader = dict\(sampler="):
        Runner.from_cfg(cfg).train()
    runner = Runner.from_cfg(training_config(videos, tmp_path, train_dataloader__sampler__length=3))
    with pytest.raises(ConfigError, match="length=3, but the interval is 2; leave it out"):
        runner.train()


def test_what_cannot_be_a_trained_model() -> None:
    architecture = model_config() | {"type": "mmseg.EncoderDecoder"}
    with pytest.raises(ConfigError, match="ResQModel needs a precision; write resq="):
        ResQModel(architecture, {"enable": False})
    with pytest.raises(ConfigError, match=r"training.lr is MMEngine's to know; write it as optim_wrapper.optimizer"):
        ResQModel(architecture, {"precision": "W8A8->W4A4"}, training={"lr": 1e-3})
    with pytest.raises(ConfigError, match=r"unknown setting distil. Did you mean 'distill'"):
        ResQModel(architecture, {"precision": "W8A8->W4A4"}, training={"distil": "logits"})
    with pytest.raises(ConfigError, match=r"are longer than the clips; write resq.interval=5"):
        ResQModel(architecture, {"precision": "W8A8->W4A4"}, training={"intervals": (2, 5)})


def test_frame_quantization_trains_alike(videos: Path, tmp_path: Path) -> None:
    cfg = training_config(videos, tmp_path, model__training={"weight_scales": "learned"}, model__learn_ranges=True)
    cfg.model.resq.precision = "W4A4"
    runner = Runner.from_cfg(cfg)
    start = Calibrated()
    runner.register_hook(start)
    runner.train()
    found = scales_of(runner.model)
    assert any("keyframe_weight_scale" in name for name in found)
    assert not any("residual" in name for name in found)
    assert not all(torch.equal(scale, start.scales[name]) for name, scale in found.items())
    assert "val/resq/gbops_per_frame" in runner.message_hub.log_scalars


def test_the_visualizer_gets_losses_scales_and_bit_shares(videos: Path, tmp_path: Path) -> None:
    cfg = training_config(videos, tmp_path, iterations=4, model__learn_ranges=True)
    cfg.model.resq.precision = "W8A8->W4A{0,4}"
    cfg.merge_from_dict({"default_hooks.resq.scalars_every": 2, "default_hooks.logger": {"interval": 2}})
    cfg.merge_from_dict({"visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]}})
    cfg.default_hooks.logger.type = "LoggerHook"
    runner = Runner.from_cfg(cfg)
    runner.train()
    path = next(tmp_path.rglob("scalars.json"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    reported = {line["step"]: line for line in lines if any(key.startswith("resq/scale") for key in line)}
    assert set(reported) == {2, 4}
    layer = next(iter(residual_layers(runner.model.architecture)))
    scale = residual_layers(runner.model.architecture)[layer].keyframe_quantizer.scale
    assert reported[4][f"resq/scale/{layer}/keyframe.activation"] == pytest.approx(float(scale.detach()))
    shares = [reported[4][f"resq/bits/{layer}/{bits}"] for bits in (0, 4)]
    assert sum(shares) == pytest.approx(1)
    assert any("loss" in line for line in lines)


@pytest.mark.parametrize("what", [{"distill": "logits", "features": ["decode_head.conv_seg"]}, {"truncate": True}])
def test_settings_of_training(videos: Path, tmp_path: Path, what: dict[str, Any]) -> None:
    runner = Runner.from_cfg(training_config(videos, tmp_path, iterations=2, model__training=what))
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert ("train/loss_distill" in scalars) == ("distill" in what)
    if "distill" in what:
        assert runner.message_hub.get_scalar("train/loss_distill").current() > 0
        assert not any("teacher" in name for name in runner.model.state_dict())


def test_batch_norms_that_are_not_folded_keep_their_statistics_unless_live(videos: Path, tmp_path: Path) -> None:
    model = Runner.from_cfg(training_config(videos, tmp_path)).model
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    model.train()
    assert norms
    assert not any(norm.training for norm in norms)
    live = Runner.from_cfg(training_config(videos, tmp_path / "b", model__training={"batch_norm": "live"})).model
    assert any(module.training for module in live.train().modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_settings_are_written_once(videos: Path, tmp_path: Path) -> None:
    cfg = training_config(videos, tmp_path)
    cfg.resq = {"precision": "W8A8->W4A4"}
    with pytest.raises(ConfigError, match="write resq = None at the top level"):
        Runner.from_cfg(cfg).train()
