"""Folders of frames and CamVid: clips, order, labels on some frames."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.registry import DATASETS, init_default_scope
from resq_mmengine import mmcv_lite
from resq_mmengine.clips import clips_of
from resq_mmengine.video_dataset import DatasetError

from resq_plugin.errors import ConfigError

mmcv_lite.install()

CAMVID = Path(__file__).resolve().parents[3] / "shared" / "data" / "camvid"
PIPELINE = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
TWO_CLASSES = {"classes": ("ground", "sky"), "palette": [[0, 0, 0], [9, 9, 9]]}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def build(
    root: Path, kind: str = "FrameFolder", images: str = "images", labels: str | None = None, **more: Any
) -> Any:
    prefix = {"img_path": images} | ({} if labels is None else {"seg_map_path": labels})
    settings = {"metainfo": TWO_CLASSES} if kind == "FrameFolder" else {}
    settings |= {"pipeline": PIPELINE, "test_mode": True, "data_prefix": prefix, "data_root": str(root)} | more
    return DATASETS.build({"type": f"resq_mmseg.{kind}", **settings})


def image(path: Path, value: int, size: tuple[int, int] = (8, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).convert("RGB" if "labels" not in str(path) else "L").save(path)


def test_one_folder_is_one_clip_in_natural_order_with_labels_on_some_frames(tmp_path: Path) -> None:
    for number in (8, 9, 10, 11):
        image(tmp_path / f"images/f{number}.png", number)
    image(tmp_path / "labels/f10.png", 1)
    dataset = build(tmp_path, labels="labels")

    (clip,) = clips_of(dataset)
    assert (clip.name, clip.labelled) == ("images", (False, False, True, False))
    samples = [dataset[i] for i in range(4)]
    assert [int(sample["inputs"][0, 0, 0]) for sample in samples] == [8, 9, 10, 11]
    assert [sample["data_samples"].frame_index for sample in samples] == [0, 1, 2, 3]
    assert samples[2]["data_samples"].gt_sem_seg.data.unique().tolist() == [1]
    assert "gt_sem_seg" not in samples[3]["data_samples"]


def test_every_folder_is_a_clip(tmp_path: Path) -> None:
    for street, count in (("b", 2), ("a2", 3), ("a10", 1)):
        for number in range(count):
            image(tmp_path / f"images/{street}/{number:05}.jpg", number)
    image(tmp_path / "labels/a2/00001.png", 1)
    dataset = build(tmp_path, labels="labels")

    assert [(clip.name, len(clip.indices)) for clip in clips_of(dataset)] == [("a2", 3), ("a10", 1), ("b", 2)]
    assert [i for i in range(6) if dataset.get_data_info(i)["labelled"]] == [1]


def test_without_labels_all_frames_are_there_for_calibration(tmp_path: Path) -> None:
    image(tmp_path / "images/1.png", 1)
    dataset = build(tmp_path)
    assert dataset[0]["data_samples"].labelled is False


def test_step_splits_where_numbers_jump_or_the_sequence_changes(tmp_path: Path) -> None:
    for name in ("x_002", "x_004", "x_006", "x_010", "y_012"):
        image(tmp_path / f"images/{name}.png", 0)

    clips = clips_of(build(tmp_path, step=2))
    assert [(clip.name, len(clip.indices)) for clip in clips] == [
        ("images/x_002", 3),
        ("images/x_010", 1),
        ("images/y_012", 1),
    ]
    assert [len(clip.indices) for clip in clips_of(build(tmp_path))] == [5]


def test_what_is_wrong_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DatasetError, match=r"images does not exist; data_prefix=dict\(img_path="):
        build(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match=r"FrameFolder found no frame in .*images"):
        build(tmp_path)
    image(tmp_path / "images/a.png", 0)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DatasetError, match=r"no label \*.png in .*labels; leave out seg_map_path"):
        build(tmp_path, labels="labels")
    image(tmp_path / "labels/b.png", 0)
    with pytest.raises(DatasetError, match=r"no label belongs to a frame: .* like .*b.png, frames like a"):
        build(tmp_path, labels="labels")
    image(tmp_path / "labels/a.png", 0)
    with caplog.at_level(logging.WARNING):
        build(tmp_path, labels="labels")
    assert "1 labels belong to no frame, first" in caplog.text
    with pytest.raises(DatasetError, match=r"step=1 needs a number at the end .* there is .*a.png"):
        build(tmp_path, step=1)
    with pytest.raises(ConfigError, match="step=0 must be"):
        build(tmp_path, step=0)


def test_camvid_classes_void_and_clips(tmp_path: Path) -> None:
    names = ["0001TP_006690", "0001TP_006720", "0016E5_07959", "0016E5_07961", "Seq05VD_f00000"]
    for name in names:
        image(tmp_path / f"val/{name}.png", 5)
        path = tmp_path / f"valannot/{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.array([[0, 10, 11] * 4] * 8, np.uint8)).save(path)
    dataset = build(tmp_path, "CamVidSequence", "val", "valannot")

    hertz = build(tmp_path, "CamVidSequence", "val", "valannot", step=30)

    assert [len(clip.indices) for clip in clips_of(dataset)] == [1, 1, 2, 1]
    assert [len(clip.indices) for clip in clips_of(hertz)] == [2, 1, 1, 1]
    assert dataset[0]["data_samples"].gt_sem_seg.data.unique().tolist() == [0, 10, 255]
    assert len(dataset.metainfo["classes"]) == len(dataset.metainfo["palette"]) == 11


def test_camvid_with_chosen_classes_keeps_void_out(tmp_path: Path) -> None:
    image(tmp_path / "val/0016E5_07959.png", 5)
    (tmp_path / "valannot").mkdir()
    Image.fromarray(np.array([[3, 8, 11] * 4] * 8, np.uint8)).save(tmp_path / "valannot/0016E5_07959.png")
    dataset = build(tmp_path, "CamVidSequence", "val", "valannot", metainfo={"classes": ("car", "road")})

    assert dataset[0]["data_samples"].gt_sem_seg.data.unique().tolist() == [0, 1, 255]
    assert dataset.metainfo["palette"] == [[64, 0, 128], [128, 64, 128]]


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the CamVid frames are not on this machine")
def test_the_real_camvid_sequence_is_one_clip_of_36_labelled_frames() -> None:
    dataset = build(CAMVID, "CamVidSequence", "val", "valannot")

    (clip,) = clips_of(dataset)
    assert (clip.name, len(clip.indices), set(clip.labelled)) == ("val/0016E5_08023", 36, {True})
    sample = dataset[35]
    assert tuple(sample["inputs"].shape) == (3, 360, 480)
    assert set(sample["data_samples"].gt_sem_seg.data.unique().tolist()) <= {*range(11), 255}
