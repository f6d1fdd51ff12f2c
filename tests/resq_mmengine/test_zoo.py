"""Models from the zoos of MMSeg and MMPose: no weights, no network, no process group, clear errors."""

from __future__ import annotations

import copy
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

pytest.importorskip("mmseg")
pytest.importorskip("mmpose")

from resq_mmengine import zoo
from resq_mmengine.zoo import FrameModel, ToolkitMissingError, build_model, load_config

from resq_plugin.errors import ConfigError

DDRNET = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
HRNET_POSE = "mmpose::body_2d_keypoint/topdown_heatmap/mpii/td-hm_hrnet-w32_8xb64-210e_mpii-256x256.py"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        pytest.fail("the network is used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def segmentor() -> nn.Module:
    return build_model(DDRNET)


def test_a_file_may_have_a_base_from_a_zoo(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"_base_ = ['{DDRNET}']\nresq = dict(interval=5)\n")

    if find_spec("pkg_resources") is None:
        with pytest.raises(ToolkitMissingError, match="setuptools<81"):
            load_config(child)
        return
    config = load_config(child)
    assert config.resq.interval == 5
    assert config.model.decode_head == load_config(DDRNET).model.decode_head
    assert isinstance(build_model(config), nn.Module)


def test_a_segmentor_is_built_for_inference_on_the_cpu(segmentor: nn.Module) -> None:
    kinds = {type(module) for module in segmentor.modules()}
    assert nn.BatchNorm2d in kinds
    assert nn.SyncBatchNorm not in kinds
    assert not any(module.training for module in segmentor.modules())


def test_no_source_of_weights_is_left(segmentor: nn.Module) -> None:
    assert load_config(DDRNET).model.backbone.init_cfg.type == "Pretrained"
    segmentor.init_weights()  # downloads nothing


def test_a_loaded_config_is_not_changed() -> None:
    config = load_config(DDRNET)
    before = copy.deepcopy(config._cfg_dict)
    model = build_model(config, {"model.decode_head.num_classes": 5})

    assert config._cfg_dict == before
    with torch.no_grad():
        assert FrameModel(model)(torch.zeros(1, 3, 64, 128)).shape == (1, 5, 8, 16)


def test_synchronised_batch_norm_by_default_of_a_class_is_replaced_too() -> None:
    description: dict[str, Any] = {
        "norm_cfg": {"type": "SyncBN", "requires_grad": True},
        "heads": [{"init_cfg": {"type": "Pretrained"}, "norm_cfg": {"type": "MMSyncBN"}}, "x"],
        "pretrained": "open-mmlab://x",
        "type": "Y",
    }
    zoo._make_standalone(description)
    assert description == {
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "heads": [{"norm_cfg": {"type": "BN"}}, "x"],
        "type": "Y",
    }


class TestFrameModel:
    def test_runs_backbone_and_head_of_a_pose_estimator(self) -> None:
        model = FrameModel(build_model(HRNET_POSE))
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 16, 16)

    def test_has_the_names_and_parameters_of_the_model(self, segmentor: nn.Module) -> None:
        frame_model = FrameModel(segmentor)

        assert [name for name, _ in frame_model.named_modules()] == [name for name, _ in segmentor.named_modules()]
        theirs = dict(segmentor.named_parameters())
        assert all(theirs[name] is parameter for name, parameter in frame_model.named_parameters())
        assert frame_model.state_dict().keys() == segmentor.state_dict().keys()
        assert not frame_model.training

    def test_a_replaced_child_is_replaced_in_both(self) -> None:
        model = build_model(DDRNET)
        frame_model = FrameModel(model)
        frame_model.backbone = nn.Identity()
        assert model.backbone is frame_model.backbone

    def test_the_mode_is_that_of_the_model(self) -> None:
        model = build_model(DDRNET)
        frame_model = FrameModel(model).train()
        assert model.training
        assert model.backbone.training
        frame_model.eval()
        assert not model.training
        assert not frame_model.training

    def test_a_copy_shares_nothing_with_the_original(self, segmentor: nn.Module) -> None:
        twin = copy.deepcopy(FrameModel(segmentor))
        assert twin.backbone is twin.model.backbone
        assert twin.backbone is not segmentor.backbone


class TestErrors:
    def test_a_config_that_needs_another_package(self, tmp_path: Path) -> None:
        path = tmp_path / "config.py"
        path.write_text("custom_imports = dict(imports=['nonexistent_toolkit'], allow_failed_imports=False)\n")
        with pytest.raises(ConfigError, match="nonexistent_toolkit"):
            load_config(path)

    def test_unknown_toolkit(self) -> None:
        with pytest.raises(ConfigError, match=r"'mmsge'; supported are mmseg, mmpose.*Did you mean 'mmseg'"):
            load_config("mmsge::ddrnet/x.py")

    def test_missing_zoo_config_names_the_nearest(self) -> None:
        with pytest.raises(
            ConfigError, match=r"no config 'ddrnet/ddrnet_23-slim\.py'.*Nearest: mmseg::ddrnet/ddrnet_23"
        ):
            load_config("mmseg::ddrnet/ddrnet_23-slim.py")

    @pytest.mark.parametrize("name", ["", "../model-index.yml", "ddrnet"])
    def test_what_is_no_config_of_the_zoo(self, name: str) -> None:
        with pytest.raises(ConfigError, match="mmseg has no config"):
            load_config(f"mmseg::{name}")

    def test_missing_file_with_the_name_of_a_zoo_config(self) -> None:
        with pytest.raises(ConfigError, match="Did you mean mmseg::ddrnet"):
            load_config(DDRNET.partition("::")[2])

    def test_missing_file(self) -> None:
        with pytest.raises(ConfigError, match=r"no config file nowhere/x\.py.*mmseg::"):
            load_config("nowhere/x.py")

    def test_toolkit_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zoo, "find_spec", lambda name: None)
        with pytest.raises(ToolkitMissingError, match=r"pip install 'resq-plugin\[mmpose\]'"):
            load_config(HRNET_POSE)

    def test_broken_file(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.py"
        path.write_text("model = dict(")
        with pytest.raises(ConfigError, match=r"mmengine cannot read the config .*broken\.py"):
            load_config(path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("model = dict(type='EncoderDecoder')", "default_scope of .* is None"),
            ("default_scope = 'mmdet'", "'mmdet'; supported are mmseg, mmpose"),
            ("default_scope = 'mmseg'", "has no 'model'"),
            ("default_scope = 'mmseg'; model = dict(type='EncodrDecoder')", "mmseg cannot build.*EncodrDecoder"),
        ],
    )
    def test_configs_that_are_no_model(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "config.py"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            build_model(path)
