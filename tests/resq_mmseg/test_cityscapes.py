"""Cityscapes snippets: the window of frames around each label, in the real layout, made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.registry import DATASETS, init_default_scope
from resq_mmengine import mmcv_lite
from resq_mmengine.clips import FrameIndex, clips_of, intervals_to_measure
from resq_mmengine.video_dataset import DatasetError, natural_key, seeded

from resq_plugin.errors import ConfigError

mmcv_lite.install()

SIZE = (24, 48)
TEST_PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": (48, 24), "keep_ratio": True},
    {"type": "LoadAnnotations"},
    {"type": "PackSegInputs"},
]
# One recording of frankfurt holds two snippets; that of aachen starts at 0.
LABELLED = {"aachen": ["aachen_000000_000019"], "frankfurt": ["frankfurt_000001_000294", "frankfurt_000001_000576"]}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def make_snippets(root: Path, split: str = "val", labels: bool = True) -> Path:
    """Write 30 frames for each label; the red of a frame is its number modulo 256, a label map is class 7."""
    for city, stems in LABELLED.items():
        images, annotations = root / "leftImg8bit_sequence" / split / city, root / "gtFine" / split / city
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for stem in stems:
            sequence, labelled = stem.rsplit("_", 1)
            for number in range(int(labelled) - 19, int(labelled) + 11):
                pixels = np.zeros((*SIZE, 3), np.uint8)
                pixels[..., 0] = number % 256
                Image.fromarray(pixels).save(images / f"{sequence}_{number:06}_leftImg8bit.png")
            if labels:
                name = annotations / f"{stem}_gtFine_labelTrainIds.png"
                Image.fromarray(np.full(SIZE, 7, np.uint8)).save(name)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_snippets(tmp_path_factory.mktemp("cityscapes"))


def build(root: Path, **settings: Any) -> Any:
    """Build the dataset as a config does: by scope and without custom_imports."""
    settings = {"pipeline": TEST_PIPELINE, "test_mode": True} | settings
    return DATASETS.build({"type": "resq_mmseg.CityscapesSnippets", "data_root": str(root), **settings})


def test_every_label_has_its_own_clip_of_30_frames_also_within_one_recording(root: Path) -> None:
    dataset = build(root)

    assert len(dataset) == 90
    clips = clips_of(dataset)
    assert [clip.name for clip in clips] == [stem for stems in LABELLED.values() for stem in stems]
    for clip in clips:
        assert len(clip.indices) == 30
        assert [t for t, labelled in enumerate(clip.labelled) if labelled] == [19]
    assert dataset.get_data_info(30 + 19)["frame_index"] == 294
    assert dataset.get_data_info(30)["img_path"].endswith("val/frankfurt/frankfurt_000001_000275_leftImg8bit.png")


def test_a_window_is_what_an_interval_visits(root: Path) -> None:
    dataset = build(root, frames=(-2, 0))

    assert len(dataset) == 9
    for clip in clips_of(dataset):
        assert clip.labelled == (False, False, True)
        a, b, c = clip.indices
        assert sorted(intervals_to_measure(clip, 3), key=len) == [(c,), (b, c), (a, b, c)]
    assert all(build(root, frames=(0, 0)).get_data_info(i)["labelled"] for i in range(3))


def test_an_unchanged_test_pipeline_gives_metainfo_and_labels_only_where_there_are_some(root: Path) -> None:
    dataset = build(root, frames=(-1, 0))

    before, labelled = dataset[2]["data_samples"], dataset[3]["data_samples"]
    assert (before.clip_id, before.frame_index, before.labelled) == ("frankfurt_000001_000294", 293, False)
    assert (labelled.clip_id, labelled.frame_index, labelled.labelled) == ("frankfurt_000001_000294", 294, True)
    assert "gt_sem_seg" not in before
    assert labelled.gt_sem_seg.data.unique().tolist() == [7]
    assert dataset[2]["inputs"][2].unique().tolist() == [293 % 256]  # BGR, so red is the last
    assert before.img_path.endswith("frankfurt_000001_000293_leftImg8bit.png")


def test_pseudo_labels_stand_in_for_missing_labels(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"3 of 3 pseudo-labels are missing.*python -m resq_mmseg.pseudo_labels"):
        build(root, frames=(-1, 0), pseudo_label_dir=str(tmp_path))

    for city, stems in LABELLED.items():
        for stem in stems:
            sequence, labelled = stem.rsplit("_", 1)
            path = tmp_path / city / f"{sequence}_{int(labelled) - 1:06}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full(SIZE, 3, np.uint8)).save(path)
    dataset = build(root, frames=(-1, 0), pseudo_label_dir=str(tmp_path))

    assert [dataset[i]["data_samples"].gt_sem_seg.data.unique().item() for i in range(6)] == [3, 7] * 3
    assert all(clip.labelled == (True, True) for clip in clips_of(dataset))


def test_pseudo_labels_lie_below_the_data_root(root: Path) -> None:
    with pytest.raises(DatasetError, match=rf"first {root}/pseudo/aachen/aachen_000000_000018.png"):
        build(root, frames=(-1, 0), pseudo_label_dir="pseudo")


def test_random_transforms_are_alike_within_an_interval_and_leave_the_generators(root: Path) -> None:
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": (48, 24), "ratio_range": (1.0, 3.0), "keep_ratio": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    dataset = build(root, frames=(0, 0), pipeline=pipeline, test_mode=False)
    state = np.random.get_state()[1].copy()

    shapes = {seed: dataset[FrameIndex(0, seed=seed)]["inputs"].shape for seed in range(8)}
    assert len(set(shapes.values())) > 1
    for seed, shape in shapes.items():
        assert dataset[FrameIndex(1, keyframe=0, seed=seed)]["inputs"].shape == shape
        again = dataset[FrameIndex(1, keyframe=0, seed=seed)]["inputs"]
        assert (again == dataset[FrameIndex(1, keyframe=0, seed=seed)]["inputs"]).all()
    assert (np.random.get_state()[1] == state).all()


def test_a_crop_that_depends_on_labels_is_refused_in_training_on_intervals(root: Path) -> None:
    crop = {"type": "RandomCrop", "crop_size": (16, 16)}
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, crop, {"type": "PackSegInputs"}]
    alike = build(root, frames=(0, 0), pipeline=pipeline, test_mode=False)
    assert alike[FrameIndex(0, seed=1)]["inputs"].shape == (3, 16, 16)

    crop["cat_max_ratio"] = 0.75
    dataset = build(root, frames=(0, 0), pipeline=pipeline, test_mode=False)
    assert dataset[0]["inputs"].shape == (3, 16, 16)  # image by image it is fine
    with pytest.raises(ConfigError, match=r"RandomCrop\(cat_max_ratio=0.75\).*write cat_max_ratio=1.0"):
        dataset[FrameIndex(0, seed=1)]


def test_samples_tell_whether_they_are_a_keyframe(root: Path) -> None:
    dataset = build(root, frames=(-1, 0))
    assert dataset[FrameIndex(0)]["data_samples"].keyframe is True
    assert dataset[FrameIndex(1, keyframe=0)]["data_samples"].keyframe is False
    assert "keyframe" not in dataset[1]["data_samples"]


def test_training_on_a_frame_without_a_label_says_what_to_do(root: Path) -> None:
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomCrop", "crop_size": (16, 16), "cat_max_ratio": 0.75},
        {"type": "PackSegInputs"},
    ]
    dataset = build(root, frames=(-1, 0), pipeline=pipeline, test_mode=False)

    with pytest.raises(ConfigError, match=r"RandomCrop needs 'gt_seg_map'.*frames=\(0, 0\).*pseudo_label_dir"):
        dataset[0]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no label .*gtFine/val; unpack gtFine_trainvaltest.zip"):
        build(tmp_path)
    make_snippets(tmp_path)
    (tmp_path / "leftImg8bit_sequence/val/aachen/aachen_000000_000003_leftImg8bit.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 90 frames .* first .*aachen_000000_000003.*leftImg8bit_sequence_"):
        build(tmp_path)
    assert len(build(tmp_path, frames=(-2, 0))) == 9
    odd = tmp_path / "gtFine/val/aachen/aachen_19_gtFine_labelTrainIds.png"
    odd.touch()
    with pytest.raises(DatasetError, match=r"aachen_19_gtFine_labelTrainIds.png is not called"):
        build(tmp_path)


def test_label_ids_without_train_ids_name_the_converter(tmp_path: Path) -> None:
    make_snippets(tmp_path, labels=False)
    (tmp_path / "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png").touch()

    with pytest.raises(DatasetError, match=r"tools/dataset_converters/cityscapes.py"):
        build(tmp_path)


@pytest.mark.parametrize("frames", [(-20, 0), (-2, 11), (1, 2), (0,), (-3, -1)])
def test_an_impossible_window_is_refused(root: Path, frames: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"within \(-19, 10\)"):
        build(root, frames=frames)


def test_classes_are_those_of_mmseg_and_can_be_chosen(root: Path) -> None:
    from mmseg.datasets import CityscapesDataset

    dataset = build(root)
    assert dataset.metainfo["classes"] == CityscapesDataset.METAINFO["classes"]
    assert dataset.metainfo["palette"] == CityscapesDataset.METAINFO["palette"]

    chosen = build(root, frames=(0, 0), metainfo={"classes": ("car", "traffic sign")})
    assert chosen[0]["data_samples"].gt_sem_seg.data.unique().tolist() == [1]  # 7 is the traffic sign


def test_natural_order() -> None:
    names = ["b1", "a10", "a9", "a", "10", "9", "a9b"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "a9", "a9b", "a10", "b1"]


def test_seeded_puts_the_generators_back_after_an_error() -> None:
    before = np.random.get_state()[1].copy()
    drawn = []

    def fail() -> None:
        with seeded(3):
            drawn.append(np.random.rand())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with seeded(3):
        assert np.random.rand() == drawn[0]
    assert (np.random.get_state()[1] == before).all()
