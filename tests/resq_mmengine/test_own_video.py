"""Videos and labels that `resq compare` is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from films import cut_off, encode, pictures, sound
from PIL import Image

pytest.importorskip("mmseg")

from resq_mmengine.own_video import open_pictures
from resq_mmengine.video_dataset import DatasetError
from resq_mmseg.label_maps import label_maps

from resq_plugin.errors import ConfigError, ResQError, VideoError


def test_the_beginning_of_a_video_that_breaks_off_is_taken(tmp_path: Path) -> None:
    film = cut_off(encode(tmp_path / "film.mkv", frames=41), 0.5)
    with pytest.raises(VideoError, match=r"breaks off after \d+ whole frames"):
        open_pictures(film)
    found = open_pictures(film, 5)
    assert found[4].shape == pictures(1)[0].shape
    with pytest.raises(VideoError, match=r"41 frames are not there; write --frames \d+\.$"):
        open_pictures(film, 41)


@pytest.mark.parametrize("frames", [0, -3])
def test_no_frames_are_refused(frames: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--frames {frames} is not allowed; write how many"):
        open_pictures(tmp_path, frames)


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "image.png")
    np.savez(tmp_path / "clip.npz", pictures(2))
    np.save(tmp_path / "clip.npy", pictures(2))
    (tmp_path / "empty").mkdir()
    for path, message in [
        (tmp_path / "image.png", "is an image, not a video; give its folder"),
        (tmp_path / "clip.npz", "holds arrays, not a video; numpy.load reads it"),
        (tmp_path / "clip.npy", "holds arrays, not a video; numpy.load reads it"),
        (tmp_path / "empty", "holds no frame"),
        (sound(tmp_path / "sound.m4a"), "has no video stream, only audio"),
        (tmp_path / "nothing.mp4", "does not exist"),
    ]:
        with pytest.raises(ResQError, match=message):
            open_pictures(path)


def labels(folder: Path, label: np.ndarray) -> Path:
    (folder / "labels").mkdir()
    Image.fromarray(label).save(folder / "labels" / "0.png")
    return folder / "labels"


def test_labels_have_the_size_of_their_frames(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    folder = labels(tmp_path, np.full((48, 64), 3, np.uint8))
    (found, missing) = label_maps(folder, film, 2, (48, 64))
    assert found.shape == (1, 48, 64)
    assert missing is None
    with pytest.raises(DatasetError, match="is 48×64, its frame 64×48; write labels in the size and rotation"):
        label_maps(folder, film, 2, (64, 48))


def test_labels_have_classes_of_8_bits(tmp_path: Path) -> None:
    folder = labels(tmp_path, np.full((48, 64), 7000, np.uint16))
    with pytest.raises(DatasetError, match="has values up to 7000; write classes 0 to 254"):
        label_maps(folder, tmp_path / "film.mp4", 1, (48, 64))
