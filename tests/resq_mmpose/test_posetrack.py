"""PoseTrack18: tracks become clips, unlabelled frames lie between labelled ones, persons go in step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmpose")

from mmengine.registry import DATASETS, init_default_scope
from resq_mmengine import mmcv_lite
from resq_mmengine.clips import FrameIndex, clips_of, intervals_to_measure
from resq_mmengine.video_dataset import DatasetError

from resq_plugin.errors import ConfigError

mmcv_lite.install()
pytestmark = pytest.mark.filterwarnings("ignore:The metainfo config file:UserWarning")

VIDEO = "012834"
SIZE = (64, 96)
# track: frame -> left edge of its box
TRACKS = {0: {0: 10.0, 4: 18.0, 5: 20.0}, 3: {0: 50.0, 4: 50.0, 20: 50.0}}
PIPELINE = [
    {"type": "LoadImage"},
    {"type": "GetBBoxCenterScale"},
    {"type": "TopdownAffine", "input_size": (32, 32)},
    {"type": "PackPoseInputs"},
]


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmpose")


def make_posetrack(root: Path, *, track_ids: bool = True) -> Path:
    images, people = [], []
    folder = root / f"images/val/{VIDEO}_mpii_test"
    folder.mkdir(parents=True)
    for number in range(21):
        Image.fromarray(np.full((*SIZE, 3), 10 * number, np.uint8)).save(folder / f"{number:06}.jpg")
    for number in (0, 4, 5, 20):
        image_id = 10128340000 + number
        name = f"images/val/{VIDEO}_mpii_test/{number:06}.jpg"
        images.append(
            {"is_labeled": True, "file_name": name, "nframes": 21, "frame_id": image_id, "vid_id": VIDEO}
            | {"id": image_id, "width": SIZE[1], "height": SIZE[0]}
        )
        for track, boxes in TRACKS.items():
            if number in boxes:
                x = boxes[number]
                points = [value for joint in range(17) for value in (x + joint, 12.0 + joint, 1)]
                person = {"image_id": image_id, "category_id": 1, "id": 10 * image_id + track, "scores": []}
                person |= {"keypoints": points, "bbox": [x, 10.0, 20.0, 30.0]}
                people.append(person | ({"track_id": track} if track_ids else {}))
    values = {"images": images, "annotations": people, "categories": [{"id": 1, "name": "person"}]}
    (root / "val.json").write_text(json.dumps(values))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_posetrack(tmp_path_factory.mktemp("posetrack"))


def build(root: Path, **settings: Any) -> Any:
    settings = {"pipeline": PIPELINE, "test_mode": True, "ann_file": "val.json"} | settings
    return DATASETS.build({"type": "resq_mmpose.PoseTrackVideo", "data_root": str(root), **settings})


def test_a_clip_is_one_person_and_far_labels_start_a_new_one(root: Path) -> None:
    clips = clips_of(build(root))

    assert [(clip.name, len(clip.indices)) for clip in clips] == [
        (f"{VIDEO}/0", 6),
        (f"{VIDEO}/3", 5),
        (f"{VIDEO}/3", 1),  # 16 frames later
    ]
    assert clips[0].labelled == (True, False, False, False, True, True)
    frames = [int(index) for interval in intervals_to_measure(clips[0], 3) for index in interval]
    assert set(frames) <= set(clips[0].indices)


def test_boxes_of_unlabelled_frames_lie_in_between(root: Path) -> None:
    dataset = build(root, crop="frame")
    infos = [dataset.get_data_info(i) for i in range(6)]

    assert [info["bbox"][0, 0] for info in infos] == [10, 12, 14, 16, 18, 20]
    assert [Path(info["img_path"]).name for info in infos[1:4]] == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert [info["keypoints_visible"].sum() for info in infos] == [17, 0, 0, 0, 17, 17]
    assert len({info["id"] for info in infos}) == 6


def test_an_unlabelled_keyframe_gives_its_crop_to_the_interval(root: Path) -> None:
    dataset = build(root)
    frame = FrameIndex(4, keyframe=2)

    assert dataset.get_data_info(frame)["bbox"][0, 0] == 14
    samples = [dataset[FrameIndex(2)]["data_samples"], dataset[frame]["data_samples"]]
    assert np.array_equal(samples[0].input_center, samples[1].input_center)
    assert np.array_equal(samples[0].input_scale, samples[1].input_scale)
    assert (samples[0].labelled, samples[1].labelled) == (False, True)
    assert samples[1].gt_instances.bboxes[0, 0] == 18


def test_no_gaps_filled_leaves_labelled_frames_only(root: Path) -> None:
    dataset = build(root, fill_gaps=1)
    assert len(dataset) == 6
    assert [len(clip.indices) for clip in clips_of(dataset)] == [1, 2, 1, 1, 1]


def test_what_is_missing_or_impossible_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fill_gaps=0 must be"):
        build(root, fill_gaps=0)
    with pytest.raises(ConfigError, match="detections have no tracks"):
        build(root, bbox_file="detections.json")
    make_posetrack(tmp_path, track_ids=False)
    with pytest.raises(DatasetError, match="has no track_id and vid_id"):
        build(tmp_path)
    make_posetrack(tmp_path / "more")
    (tmp_path / f"more/images/val/{VIDEO}_mpii_test/000002.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 7 frames .* first .*000002.jpg.*fill_gaps=1"):
        build(tmp_path / "more")
