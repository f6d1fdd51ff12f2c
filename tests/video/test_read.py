"""`resq_plugin.video.read`: frames for a network, one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from films import LOSSLESS, cut_off, encode, pictures, sound
from PIL import Image

from resq_plugin.errors import VideoError
from resq_plugin.video import Camera, VideoFile, camera, read

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("read") / "film.mp4", frames=9, **LOSSLESS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    for number, picture in enumerate(pictures(12)):
        Image.fromarray(picture).save(root / f"{number}.{'PNG' if number % 2 else 'png'}")
    return root


def rgb(index: int) -> torch.Tensor:
    return torch.from_numpy(pictures(index + 1)[index]).permute(2, 0, 1)[None].double()


def test_values_are_0_to_1_by_default(film: Path) -> None:
    frames = read(film)

    assert len(frames) == 9
    assert (frames[4].shape, frames[4].dtype) == ((1, 3, 48, 64), torch.float32)
    for index in range(9):
        assert torch.allclose(frames[index].double(), rgb(index) / 255, rtol=0, atol=1e-7)


@pytest.mark.parametrize("source", ["film", "folder"])
def test_mean_and_std_are_those_of_0_to_255_per_channel(source: str, request: pytest.FixtureRequest) -> None:
    frames = read(request.getfixturevalue(source), mean=MEAN, std=STD)
    expected = (rgb(5) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)

    assert torch.allclose(frames[5].double(), expected, rtol=0, atol=1e-6)
    assert torch.allclose(read(request.getfixturevalue(source), mean=128, std=1)[5].double(), rgb(5) - 128)


def test_size_is_height_and_width(film: Path) -> None:
    found = read(film, size=(24, 16), std=1)[3]
    assert found.shape == (1, 3, 24, 16)
    expected = F.interpolate(rgb(3).float(), (24, 16), mode="bilinear", antialias=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)


def test_a_folder_is_read_in_natural_order(folder: Path) -> None:
    frames = read(str(folder), std=1)
    assert len(frames) == 12
    assert all(torch.equal(frame, rgb(index).float()) for index, frame in enumerate(frames))


def test_slices_are_lazy_and_numbers_count_from_the_end(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = VideoFile.__getitem__
    monkeypatch.setattr(VideoFile, "__getitem__", lambda self, index: seen.append(index) or whole(self, index))
    frames = read(film, std=1)
    part = frames[4:][::2]

    assert (len(part), seen) == (3, [])
    assert torch.equal(part[1], rgb(6).float())
    assert torch.equal(frames[-1], rgb(8).float())
    assert seen == [6, 8]
    with pytest.raises(IndexError):
        frames[9]
    assert len(list(frames)) == 9


def test_only_so_many_frames(film: Path, tmp_path: Path) -> None:
    assert len(read(film, frames=4)) == 4
    assert len(read(film, frames=400)) == 9
    whole = encode(tmp_path / "a.mkv", frames=40)
    path = cut_off(whole, 0.6)
    with pytest.raises(VideoError, match=r"breaks off after \d+ whole frames .* frames=\d+ in"):
        read(path)
    count = len(VideoFile(path, partial=True))
    assert 4 < count < 40
    assert len(read(path, frames=4)) == 4
    with pytest.raises(VideoError, match=rf"frames={count + 1} are not there; write frames={count}\."):
        read(path, frames=count + 1)


def test_what_cannot_be_read_is_named(film: Path, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "empty").mkdir()
    for path, text in [
        (folder / "0.png", "is an image, not a video; give its folder"),
        (tmp_path / "a.npy", "holds arrays, not a video"),
        (tmp_path / "nowhere.mp4", "does not exist; give a video file"),
        (tmp_path / "empty", "holds no frame"),
        (sound(tmp_path / "song.m4a"), "has no video stream, only audio"),
    ]:
        with pytest.raises(VideoError) as raised:
            read(path)
        assert str(raised.value).startswith(f"{path} {text}")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"size": 64}, r"size=64 must be \(H, W\)"),
        ({"size": (0, 64)}, r"size=\(0, 64\) must be"),
        ({"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, r"meant for values of 0 to 1.*mean=\(123.675"),
        ({"mean": 0.5, "std": 0.5}, "meant for values of 0 to 1"),
        ({"mean": (1, 2)}, r"mean=\(1, 2\) must be one number, or three for R, G, B"),
        ({"std": 0}, "std=0 must be above 0"),
        ({"std": float("nan")}, "std=nan must be"),
        ({"frames": 0}, "frames=0 must be"),
    ],
)
def test_impossible_arguments_are_refused(film: Path, settings: dict, text: str) -> None:
    with pytest.raises(VideoError, match=text):
        read(film, **settings)


def test_frames_of_two_sizes_need_one_size(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 12), (12, 8)]):
        Image.fromarray(np.full((*size, 3), 9, np.uint8)).save(tmp_path / f"{number}.png")
    with pytest.raises(VideoError, match=rf"frame 1 of {tmp_path} is 12×8, others are 8×12; write size=\(H, W\)"):
        list(read(tmp_path))
    assert [frame.shape for frame in read(tmp_path, size=(4, 4))] == [(1, 3, 4, 4)] * 2


def test_a_camera_gives_frames_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ("lavfi", "color=c=0x804020:size=64x48:rate=25,format=rgb24")  # FFmpeg's own device in place of a camera
    monkeypatch.setattr(camera, "FORMATS", {"linux": source, "darwin": source, "win32": source})
    frames = read(0, std=1, frames=3)

    found = list(frames)
    assert [frame.shape for frame in found] == [(1, 3, 48, 64)] * 3
    assert found[0][0, :, 5, 5].tolist() == [0x80, 0x40, 0x20]
    assert len(list(frames)) == 3  # it is opened again
    endless = iter(read(0, size=(4, 8)))
    assert [next(endless).shape for _ in range(5)] == [(1, 3, 4, 8)] * 5


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(VideoError, match=r"camera 97 \(.*97\) cannot be opened \(.*\); give the number of one"):
        Camera(97)
