"""Frames and labels as they lie on disks: nothing is dropped, and a label is one of its frame or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import copied_from, cut_off, encode, with_matrix
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.registry import DATASETS, init_default_scope
from resq_mmengine import mmcv_lite
from resq_mmengine.clips import clips_of
from resq_mmengine.video_dataset import DatasetError

mmcv_lite.install()
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": (24, 16), "keep_ratio": False},
    {"type": "LoadAnnotations"},
    {"type": "PackSegInputs"},
]
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
LABEL = np.arange(96, dtype=np.uint8).reshape(8, 12) % 3


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def write(path: Path, values: np.ndarray = PIXELS, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def build(root: Path, images: str = "images", labels: str | None = "labels", **more: Any) -> Any:
    prefix = {"img_path": images} | ({} if labels is None else {"seg_map_path": labels})
    settings = {"metainfo": {"classes": ("a", "b", "c")}, "pipeline": PIPELINE, "test_mode": True} | more
    return DATASETS.build({"type": "resq_mmseg.FrameFolder", "data_prefix": prefix, "data_root": str(root)} | settings)


def names(dataset: Any) -> list[str]:
    return [Path(dataset.get_data_info(index)["img_path"]).name for index in range(len(dataset))]


def test_capitals_are_kept_and_files_of_desktops_left_out(tmp_path: Path) -> None:
    for name in ("0.JPG", "1.jpg", "2.Jpeg", "3.PNG"):
        write(tmp_path / "images" / name)
    write(tmp_path / "labels/1.PNG", LABEL)
    for name in ("images/._1.jpg", "images/Thumbs.db", "images/.DS_Store", "labels/._1.PNG", "images/@eaDir/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    dataset = build(tmp_path)

    assert names(dataset) == ["0.JPG", "1.jpg", "2.Jpeg", "3.PNG"]
    (clip,) = clips_of(dataset)
    assert clip.labelled == (False, True, False, False)
    assert dataset[1]["data_samples"].gt_sem_seg.data.shape == (1, 8, 12)


def test_films_in_capitals_are_films(tmp_path: Path) -> None:
    for name in ("a.MP4", "b.mp4"):
        (tmp_path / "images").mkdir(exist_ok=True)
        encode(tmp_path / "plain.mp4", frames=3).rename(tmp_path / "images" / name)
    (tmp_path / "images/._a.MP4").write_bytes(b"\0\5\26\7")
    dataset = build(tmp_path, labels=None)

    assert [(clip.name, len(clip.indices)) for clip in clips_of(dataset)] == [("a", 3), ("b", 3)]
    assert dataset[0]["inputs"].shape == (3, 16, 24)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    for case, first, second in (
        ("frames", "images/1.png", "images/1.jpg"),
        ("padded", "images/1.png", "images/01.png"),
    ):
        write(tmp_path / case / first)
        write(tmp_path / case / second)
        with pytest.raises(DatasetError, match=r"are both called images/0?1|are both called 1"):
            build(tmp_path / case, labels=None)
    root = tmp_path / "films"
    write(root / "images/a/7.png")
    encode(root / "images/a.mp4", frames=2)
    with pytest.raises(DatasetError, match=r"a and .*a\.mp4 are both called a, so that clips"):
        build(root, labels=None)
    write(tmp_path / "labelled/images/1.png")
    for name in ("1.png", "001.png"):
        write(tmp_path / "labelled/labels" / name, LABEL)
    with pytest.raises(DatasetError, match=r"1\.png and .*1\.png are labels of one frame"):
        build(tmp_path / "labelled")


def test_a_film_is_labelled_by_the_frames_that_a_player_shows(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", frames=20, g="20", bf="0")
    (tmp_path / "images").mkdir()
    copied_from(whole, tmp_path / "images/film.mp4", 512 * 8, keep_earlier=True)
    write(tmp_path / "labels/film/11.png", np.zeros((48, 64), np.uint8))
    dataset = build(tmp_path, pipeline=[PIPELINE[0], *PIPELINE[2:]])

    assert len(dataset) == 12
    sample = dataset[11]  # the whole film's frame 19 has the value 95
    assert sample["data_samples"].labelled
    assert abs(int(sample["inputs"][0, 2, 2]) - 5 * 19) <= 3


def test_a_turned_film_wants_turned_labels(tmp_path: Path) -> None:
    turned = with_matrix(encode(tmp_path / "plain.mp4", frames=3), 0, 1, -1, 0)
    (tmp_path / "images").mkdir()
    turned.rename(tmp_path / "images/film.mp4")
    label = write(tmp_path / "labels/film/1.png", np.zeros((48, 64), np.uint8))
    with pytest.raises(DatasetError, match=r"film/1\.png is 48×64, its frame .*film\.mp4#1 64×48; write labels in"):
        build(tmp_path)[1]
    write(label, np.zeros((64, 48), np.uint8))
    assert build(tmp_path)[1]["data_samples"].gt_sem_seg.data.shape == (1, 64, 48)


def test_a_film_that_breaks_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    whole = encode(tmp_path / "film.mkv")
    cut_off(whole, 0.6).rename(tmp_path / "images/film.mkv")
    with pytest.raises(DatasetError, match=r"film\.mkv breaks off after \d+ whole frames"):
        build(tmp_path, labels=None)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_labels_of_one_channel_are_classes(mode: str, tmp_path: Path) -> None:
    write(tmp_path / "images/1.png")
    values = LABEL if mode != "1" else (LABEL > 0).astype(np.uint8)
    image = Image.fromarray(values) if mode != "1" else Image.fromarray(values * 255).convert("1")
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    (tmp_path / "labels").mkdir()
    image.save(tmp_path / "labels/1.png")

    found = build(tmp_path)[0]["data_samples"].gt_sem_seg.data[0].numpy()
    assert np.array_equal(found, values)


def test_labels_that_are_none_are_named(tmp_path: Path) -> None:
    write(tmp_path / "images/1.png")
    for name, values, message in [
        ("size", np.zeros((8, 13), np.uint8), r"labels/1\.png is 8×13, its frame .*images/1\.png 8×12"),
        ("colour", PIXELS, r"labels/1\.png has the shape \(8, 12, 3\); write one channel"),
        ("deep", np.full((8, 12), 300, np.uint16), r"labels/1\.png has values up to 300; write classes 0 to 254"),
    ]:
        write(tmp_path / "labels/1.png", values)
        with pytest.raises(DatasetError, match=message):
            build(tmp_path)[0]
        assert name
    write(tmp_path / "labels/1.png", LABEL.astype(np.uint16))  # 16 bits for classes below 256 are as good
    assert np.array_equal(build(tmp_path)[0]["data_samples"].gt_sem_seg.data[0].numpy(), LABEL)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    image = write(tmp_path / "images/1.png")
    label = write(tmp_path / "labels/1.png", LABEL)
    dataset = build(tmp_path)
    whole = label.read_bytes()
    label.write_bytes(whole[:40])
    with pytest.raises(DatasetError, match=r"labels/1\.png of clip images cannot be read"):
        dataset[0]
    label.unlink()
    with pytest.raises(DatasetError, match=r"labels/1\.png of clip images cannot be read"):
        dataset[0]
    label.write_bytes(whole)
    image.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"images/1\.png of clip images cannot be read"):
        dataset[0]


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "P", "I;16"])
def test_frames_of_every_kind_have_three_channels(kind: str, tmp_path: Path) -> None:
    if kind == "I;16":
        write(tmp_path / "images/1.png", PIXELS[..., 0].astype(np.uint16) * 256)
    else:
        write(tmp_path / "images/1.png", PIXELS, kind)
    found = build(tmp_path, labels=None, pipeline=[PIPELINE[0], PIPELINE[3]])[0]["inputs"].numpy()
    expected = (
        np.repeat(PIXELS[..., :1], 3, 2)
        if kind == "I;16"
        else np.array(Image.open(tmp_path / "images/1.png").convert("RGB"))
    )
    assert np.array_equal(found.transpose(1, 2, 0)[..., ::-1], expected)
