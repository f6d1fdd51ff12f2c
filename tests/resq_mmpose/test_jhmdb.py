"""JHMDB in its real layout: split files, Matlab joints, boxes, crops that stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

pytest.importorskip("mmpose")

from mmengine.registry import DATASETS, METRICS, init_default_scope
from resq_mmengine import mmcv_lite
from resq_mmengine.clips import FrameIndex, clips_of
from resq_mmengine.video_dataset import DatasetError

from resq_plugin.errors import ConfigError

mmcv_lite.install()
pytestmark = pytest.mark.filterwarnings("ignore:The metainfo config file:UserWarning")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "jhmdb"
VIDEOS = {"catch": {"ball_a": 2, "ball_b": 2, "ball_c": 1}, "walk": {"street": 2}}
PIPELINE = [
    {"type": "LoadImage"},
    {"type": "GetBBoxCenterScale"},
    {"type": "TopdownAffine", "input_size": (64, 64)},
    {"type": "PackPoseInputs"},
]


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmpose")


def joints_of(frames: int, shift: float = 4.0) -> np.ndarray:
    """A person (2, 15, T) that walks right by ``shift`` pixels per frame; Matlab pixels."""
    rows = np.linspace(21, 81, 15)
    columns = np.where(np.arange(15) % 2, 31.0, 61.0)
    base = np.stack([columns, rows])
    return base[:, :, None] + np.arange(frames) * np.array([shift, 0.0])[:, None, None]


def make_jhmdb(root: Path, frames: int = 5, splits: str = "splits", name: str = "{}_test_split{}.txt") -> Path:
    rng = np.random.default_rng(0)
    for action, videos in VIDEOS.items():
        for video in videos:
            images = root / "Rename_Images" / action / video
            images.mkdir(parents=True, exist_ok=True)
            for t in range(frames):
                pixels = rng.integers(0, 256, (100, 120, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / f"{t + 1:05}.png")
            folder = root / "joint_positions" / action / video
            folder.mkdir(parents=True, exist_ok=True)
            savemat(folder / "joint_positions.mat", {"pos_img": joints_of(frames), "pos_world": joints_of(frames)})
        (root / splits).mkdir(exist_ok=True)
        for split in (1, 2, 3):
            lines = [f"{video}.avi {part if split == 1 else 3 - part}" for video, part in videos.items()]
            (root / splits / name.format(action, split)).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_jhmdb(tmp_path_factory.mktemp("jhmdb"))


def build(root: Path, **settings: Any) -> Any:
    settings = {"pipeline": PIPELINE, "test_mode": True} | settings
    return DATASETS.build({"type": "resq_mmpose.JhmdbVideo", "data_root": str(root), **settings})


def test_splits_tell_train_from_test(root: Path) -> None:
    test = [clip.name for clip in clips_of(build(root))]
    train = [clip.name for clip in clips_of(build(root, subset="train"))]
    assert test == ["catch/ball_a", "catch/ball_b", "walk/street"]
    assert train == ["catch/ball_c"]
    assert [clip.name for clip in clips_of(build(root, split=3))] == train
    assert all(len(clip.indices) == 5 and all(clip.labelled) for clip in clips_of(build(root)))


def test_sub_jhmdb_splits_with_their_other_names(tmp_path: Path) -> None:
    make_jhmdb(tmp_path, 1, "sub_splits", "{}_test_split_{}.txt")
    dataset = build(tmp_path, data_prefix={"splits": "sub_splits"})
    assert len(dataset) == 3


def test_matlab_joints_count_from_zero_and_the_box_is_theirs_with_padding(root: Path) -> None:
    info = build(root).get_data_info(1)

    joints = joints_of(5)[:, :, 1].T - 1
    assert np.array_equal(info["keypoints"][0], joints.astype(np.float32))
    # x 34..64, y 20..80; 10 % of 30 and 60 at each side
    assert info["bbox"].tolist() == [[31, 14, 67, 86]]
    assert build(root, padding=0).get_data_info(1)["bbox"].tolist() == [[34, 20, 64, 80]]
    assert info["keypoints_visible"].tolist() == [[1] * 15]


def test_joints_outside_the_image_are_not_visible(tmp_path: Path) -> None:
    make_jhmdb(tmp_path, 1)
    joints = joints_of(1)
    joints[0, 3], joints[1, 4] = 120.5, 0.5  # the last column is 120 in Matlab, the first row 1
    joints[0, 5] = 120.0
    savemat(tmp_path / "joint_positions/catch/ball_a/joint_positions.mat", {"pos_img": joints})

    info = build(tmp_path).get_data_info(0)
    assert np.flatnonzero(info["keypoints_visible"][0] == 0).tolist() == [3, 4]
    assert info["num_keypoints"] == 13
    assert info["bbox"][0, 2] == 119  # cut at the image


def test_crops(root: Path) -> None:
    still, clip, moving = (build(root, crop=crop) for crop in ("interval", "clip", "frame"))
    frame = FrameIndex(7, keyframe=6)  # frames 1 and 2 of the second clip

    assert still.get_data_info(frame)["bbox"].tolist() == [[31, 14, 67, 86]]
    assert moving.get_data_info(frame)["bbox"].tolist() == [[35, 14, 71, 86]]
    assert clip.get_data_info(frame)["bbox"].tolist() == [[27, 14, 79, 86]]
    assert still.get_data_info(7)["bbox"].tolist() == moving.get_data_info(7)["bbox"].tolist()  # its own keyframe

    for dataset in (still, clip, moving):
        sample = dataset[frame]["data_samples"]
        assert sample.gt_instances.bboxes.tolist() == [[35, 14, 71, 86]]  # PCK is measured by the person's box
        assert (sample.clip_id, sample.frame_index, sample.labelled) == ("catch/ball_b", 2, True)


def test_a_still_crop_turns_a_still_background_into_zero_residual(tmp_path: Path) -> None:
    make_jhmdb(tmp_path, 2)
    images = tmp_path / "Rename_Images/catch/ball_a"
    (images / "00002.png").write_bytes((images / "00001.png").read_bytes())

    def residual(crop: str) -> float:
        dataset = build(tmp_path, crop=crop)
        key, next_ = dataset[0]["inputs"].int(), dataset[FrameIndex(1, keyframe=0)]["inputs"].int()
        return float((next_ - key).abs().max())

    assert (residual("interval"), residual("clip")) == (0, 0)
    assert residual("frame") > 100


@pytest.mark.parametrize("serialize", [False, True])
def test_the_metric_of_mmpose_takes_the_samples(root: Path, serialize: bool) -> None:
    dataset = build(root, serialize_data=serialize)
    metric = METRICS.build({"type": "JhmdbPCKAccuracy", "thr": 0.2, "norm_item": ["bbox", "torso"]})
    metric.dataset_meta = dataset.metainfo
    for index in range(3):
        sample = dataset[index]["data_samples"]
        found = sample.gt_instances.keypoints.copy()
        # α · 72 = 14.4 pixels: one joint just inside, one just outside
        found[0, 2, 0] += 14.3
        found[0, 7, 0] += 14.5
        values = {"gt_instances": sample.gt_instances.to_dict(), "pred_instances": {"keypoints": found}}
        metric.process([], [values])
    result = metric.evaluate(3)
    assert result["Head PCK"] == 1.0
    assert result["Elb PCK"] == 0.5
    assert result["PCK"] == pytest.approx(14 / 15)


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no video of subset 'test' in .*splits/\*_test_split1.txt; unpack"):
        build(tmp_path)
    make_jhmdb(tmp_path, 2)
    (tmp_path / "Rename_Images/catch/ball_a/00002.png").unlink()
    with pytest.raises(DatasetError, match="ball_a has 1 frames, but the joints of 2 are labelled"):
        build(tmp_path)
    mat = tmp_path / "joint_positions/catch/ball_a/joint_positions.mat"
    savemat(mat, {"pos_img": np.zeros((2, 14, 2))})
    with pytest.raises(DatasetError, match=r"shape \(2, 14, 2\), not \(2, 15, T\)"):
        build(tmp_path)
    savemat(mat, {"pos_world": np.zeros((2, 15, 2))})
    with pytest.raises(DatasetError, match="holds no pos_img"):
        build(tmp_path)
    mat.write_bytes(b"no matlab")
    with pytest.raises(DatasetError, match="holds no pos_img"):
        build(tmp_path)
    mat.unlink()
    with pytest.raises(DatasetError, match=r"joint_positions.mat is missing; unpack joint_positions.zip"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": 4}, "split=1, 2 or 3"),
        ({"subset": "val"}, "subset='train' or 'test'"),
        ({"padding": -1}, "padding=-1 must be"),
        ({"crop": "clips"}, "crop='clips' is not allowed; .* Did you mean 'clip'"),
        ({"data_mode": "bottomup"}, "data_mode='topdown'"),
    ],
)
def test_impossible_settings_are_refused(root: Path, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(root, **settings)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the JHMDB sequence is not on this machine")
def test_the_real_sequence(tmp_path: Path) -> None:
    video = "Goal_Keeping_Tips_catch_f_cm_np1_fr_med_2"
    for folder in ("Rename_Images", "joint_positions"):
        (tmp_path / folder / "catch").mkdir(parents=True)
    (tmp_path / "Rename_Images/catch" / video).symlink_to(SHARED / video)
    (tmp_path / "joint_positions/catch" / video).mkdir()
    (tmp_path / "joint_positions/catch" / video / "joint_positions.mat").symlink_to(SHARED / "joint_positions.mat")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/catch_test_split1.txt").write_text(f"{video}.avi 2\n")
    dataset = build(tmp_path)

    (clip,) = clips_of(dataset)
    assert (clip.name, len(clip.indices), all(clip.labelled)) == (f"catch/{video}", 40, True)
    info = dataset.get_data_info(0)
    assert info["keypoints"][0, 2].tolist() == [285.5, 89.5]  # the face; pos_img says 286.5, 90.5
    assert info["bbox"][0].tolist() == pytest.approx(
        [243.5, 79.1, 315.5, 203.9], abs=1e-4
    )  # 249.5..309.5, 89.5..193.5
