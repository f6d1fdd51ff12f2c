"""Pseudo-labels: made by any MMSeg model, for unlabelled frames only, readable by the dataset."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.config import Config
from resq_mmengine.zoo import build_model

from resq_plugin.errors import ConfigError

SIZE = (32, 48)
pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:(mmseg|mmengine|mmcv)\.")
PIPELINE = """
pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
"""
# A real MMSeg model, small: classes by brightness would need training; random weights show which pixel goes where.
LABELLER = (
    """
default_scope = "mmseg"
norm_cfg = dict(type="BN")
"""
    + PIPELINE
    + """
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[127.0] * 3, std=[64.0] * 3, bgr_to_rgb=True),
    backbone=dict(type="ERFNet", norm_cfg=norm_cfg),
    decode_head=dict(type="FCNHead", in_channels=16, channels=8, num_convs=1, num_classes=3, norm_cfg=norm_cfg),
    test_cfg=dict(mode="whole"),
)
test_dataloader = dict(dataset=dict(pipeline=pipeline))
"""
)
VIDEO = (
    PIPELINE
    + """
train_dataloader = dict(
    dataset=dict(
        type="resq_mmseg.FrameFolder",
        data_root="{root}",
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        metainfo=dict(classes=("a", "b", "c")),
        pseudo_label_dir="pseudo",
        pipeline=[dict(type="NotToBeBuilt")],
    )
)
"""
)


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Path]:
    """Two clips of three frames with one label, the two configs, and a checkpoint."""
    rng = np.random.default_rng(0)
    for clip in ("x", "y"):
        (tmp_path / "images" / clip).mkdir(parents=True)
        for t in range(3):
            pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"images/{clip}/{t:03}.png")
    (tmp_path / "labels/y").mkdir(parents=True)
    Image.fromarray(np.full(SIZE, 2, np.uint8)).save(tmp_path / "labels/y/001.png")
    (tmp_path / "labeller.py").write_text(LABELLER)
    (tmp_path / "video.py").write_text(VIDEO.format(root=tmp_path))
    torch.manual_seed(3)
    model = build_model(tmp_path / "labeller.py")
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "labeller.pth")
    return {name: tmp_path / name for name in ("labeller.py", "labeller.pth", "video.py", "pseudo")}


def run(setting: dict[str, Path], *more: str) -> int:
    from resq_mmseg.pseudo_labels import main

    config, weights, data, out = setting.values()
    arguments = [str(config), str(weights), "--data", str(data), "--out", str(out), "--device", "cpu", *more]
    return main(arguments)


def test_every_unlabelled_frame_gets_what_the_model_says(setting: dict[str, Path]) -> None:
    assert run(setting) == 0

    made = sorted(path.relative_to(setting["pseudo"]).as_posix() for path in setting["pseudo"].rglob("*.*"))
    assert made == ["x/000.png", "x/001.png", "x/002.png", "y/000.png", "y/002.png"]
    model = build_model(setting["labeller.py"])
    model.load_state_dict(torch.load(setting["labeller.pth"], weights_only=True)["state_dict"])
    for name in made:
        pixels = np.array(Image.open(setting["pseudo"].parent / "images" / name), np.float32)
        frame = torch.from_numpy((pixels - 127) / 64).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = model.encode_decode(frame, [{"img_shape": SIZE, "ori_shape": SIZE, "pad_shape": SIZE}])
        label = np.array(Image.open(setting["pseudo"] / name))
        assert label.dtype == np.uint8
        assert np.array_equal(label, logits.argmax(1)[0].numpy())
    assert len({int(value) for name in made for value in np.unique(Image.open(setting["pseudo"] / name))}) > 1


def test_the_dataset_reads_them_beside_the_labels(setting: dict[str, Path]) -> None:
    from mmengine.registry import DATASETS, init_default_scope

    run(setting)
    init_default_scope("mmseg")
    config = Config.fromfile(setting["video.py"])
    description: dict[str, Any] = config.train_dataloader.dataset | {"pipeline": config.pipeline}
    dataset = DATASETS.build(description)

    labels = [dataset[i]["data_samples"].gt_sem_seg.data[0].numpy() for i in range(6)]
    assert np.array_equal(labels[0], np.array(Image.open(setting["pseudo"] / "x/000.png")))
    assert np.unique(labels[4]).tolist() == [2]  # the human label


def test_what_exists_stays_and_nothing_is_half_written(
    setting: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (setting["pseudo"] / "x").mkdir(parents=True)
    Image.fromarray(np.full(SIZE, 1, np.uint8)).save(setting["pseudo"] / "x/001.png")
    with caplog.at_level(logging.INFO):
        run(setting)

    assert "4 labels written" in caplog.text
    assert np.unique(Image.open(setting["pseudo"] / "x/001.png")).tolist() == [1]
    assert not list(setting["pseudo"].rglob("*.part"))


def test_another_number_of_classes_is_refused(setting: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    text = setting["video.py"].read_text().replace('("a", "b", "c")', '("a", "b")')
    setting["video.py"].write_text(text)

    assert run(setting) == 1
    assert "the network labels 3 classes but FrameFolder has 2" in caplog.text
    assert not setting["pseudo"].exists()


def test_a_dataset_of_images_is_refused(setting: dict[str, Path]) -> None:
    from resq_mmseg.pseudo_labels import unlabelled_frames

    labeller = Config.fromfile(setting["labeller.py"])
    root = str(setting["pseudo"].parent / "images/x")
    images = {"type": "BaseSegDataset", "metainfo": {"classes": ("a",)}, "data_prefix": {"img_path": root}}
    data = Config({"train_dataloader": {"dataset": images | {"img_suffix": ".png"}}})
    with pytest.raises(ConfigError, match=r"BaseSegDataset, which knows no clips.*resq_mmseg.CityscapesSnippets"):
        unlabelled_frames(data, labeller)
