"""What cannot work on residuals is refused before anything runs, with the line to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")

from mmengine.runner import Runner
from resq_mmengine.refusals import check_model
from tiny_video import config, make_frames
from torch import nn

from resq_plugin.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")

FLIP = {"type": "RandomFlip", "prob": 0.5}
TTA = {"type": "TestTimeAug", "transforms": [[{"type": "LoadAnnotations"}], [{"type": "PackSegInputs"}]]}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    make_frames(folder, "calib", 3)
    make_frames(folder, "val", 3)
    return folder


def refused(videos: Path, folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Runner.from_cfg(config(videos, folder, **changes)).test()
    return str(caught.value)


def test_slide_inference(videos: Path, tmp_path: Path) -> None:
    sliding = {"mode": "slide", "crop_size": (16, 16), "stride": (16, 16)}
    assert "--cfg-options model.test_cfg.mode=whole" in refused(videos, tmp_path, model__test_cfg=sliding)


def test_flip_test() -> None:
    model = nn.Conv2d(1, 1, 1)
    model.test_cfg = {"flip_test": True}
    with pytest.raises(ConfigError, match=r"write model = dict\(test_cfg=dict\(flip_test=False\)\)"):
        check_model(model)


def test_test_time_augmentation(videos: Path, tmp_path: Path) -> None:
    plain = config(videos, tmp_path).model.to_dict()
    assert "run without --tta" in refused(
        videos, tmp_path, model={"_delete_": True, "type": "SegTTAModel", "module": plain}
    )


def test_a_shuffled_sampler(videos: Path, tmp_path: Path) -> None:
    message = refused(videos, tmp_path, test_dataloader__sampler={"type": "DefaultSampler", "shuffle": True})
    line = "test_dataloader = dict(sampler=dict(_delete_=True, type='resq_mmengine.ClipSampler'))"
    assert "shuffles" in message
    assert line in message


def test_a_batch_of_frames_of_one_clip(videos: Path, tmp_path: Path) -> None:
    message = refused(videos, tmp_path, test_dataloader__batch_size=2)
    assert "test_dataloader = dict(batch_size=1)" in message
    assert "batch_sampler=dict(type='resq_mmengine.ClipBatchSampler')" in message


@pytest.mark.parametrize("transform", [FLIP, TTA], ids=lambda transform: transform["type"])
def test_transforms_that_differ_between_neighbours(videos: Path, tmp_path: Path, transform: dict[str, Any]) -> None:
    pipeline = config(videos, tmp_path).test_dataloader.dataset.pipeline
    pipeline = [pipeline[0], transform, *pipeline[1:]]
    message = refused(videos, tmp_path, test_dataloader__dataset__pipeline=pipeline)
    assert f"test_dataloader has the transform {transform['type']}" in message


def test_a_sampler_in_order_needs_no_change(videos: Path, tmp_path: Path) -> None:
    changes = {"type": "DefaultSampler", "shuffle": False}
    metrics = Runner.from_cfg(config(videos, tmp_path, test_dataloader__sampler=changes)).test()
    assert [name for name in metrics if "mIoU_t" in name] == ["seg/mIoU_t0", "seg/mIoU_t1", "seg/mIoU_t2"]


def test_frame_quantization_refuses_nothing(videos: Path, tmp_path: Path) -> None:
    changes = {"type": "DefaultSampler", "shuffle": True}
    metrics = Runner.from_cfg(
        config(
            videos, tmp_path, resq__precision="W8A8", test_dataloader__sampler=changes, test_dataloader__batch_size=2
        )
    ).test()
    assert metrics["seg/mIoU"] >= 0


def test_training_by_the_hook_alone_is_refused(videos: Path, tmp_path: Path) -> None:
    loader = config(videos, tmp_path).test_dataloader.to_dict() | {"batch_size": 1}
    changes = {
        "train_dataloader": loader,
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 1},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}},
    }
    with pytest.raises(ConfigError, match=r"write model = dict\(_delete_=True, type='resq_mmengine.ResQModel'"):
        Runner.from_cfg(config(videos, tmp_path, **changes)).train()
