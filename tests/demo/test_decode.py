"""Videos of the user: what is read from a good file, and what a bad one is answered with."""

from __future__ import annotations

import sys
import wave
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from resq_plugin.cli import main
from resq_plugin.demo import to_rgb
from resq_plugin.demo.data import video_data
from resq_plugin.demo.decode import VideoError, decode_video, fitting_size
from resq_plugin.report import MissingExtraError

av = pytest.importorskip("av")


def write_video(path: Path, frames: int, width: int = 320, height: int = 240) -> Path:
    """A grey that brightens by 8 levels per frame, with a white left half."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.time_base = Fraction(1, 10)
        for index in range(frames):
            image = torch.full((height, width, 3), min(40 + 8 * index, 240), dtype=torch.uint8)
            image[:, : width // 2] = 250
            frame = av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_frames_come_in_order_size_and_range(tmp_path: Path) -> None:
    frames = decode_video(write_video(tmp_path / "v.mp4", 6), 10)
    assert (frames.shape, frames.dtype) == ((6, 3, 128, 168), torch.float32)
    assert frames.is_contiguous()
    rgb = to_rgb(frames).float()
    for index in range(6):
        assert float(rgb[index, :, :, 100:].mean()) == pytest.approx(40 + 8 * index, abs=4)
        assert float(rgb[index, :, :, :70].mean()) == pytest.approx(250, abs=4)


def test_no_more_frames_than_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 9)
    assert len(decode_video(path, 4)) == 4
    assert torch.equal(decode_video(path, 4), decode_video(path, 9)[:4])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1920, 1080), (224, 128)), ((480, 854), (128, 224)), ((64, 64), (128, 128)), ((4000, 100), (384, 128))],
)
def test_size_fits_the_net(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitting_size(*size) == expected


def test_portrait_video(tmp_path: Path) -> None:
    assert decode_video(write_video(tmp_path / "v.mp4", 2, 120, 200), 2).shape == (2, 3, 216, 128)


def test_a_damaged_end_leaves_the_beginning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 2 <= len(decode_video(path, 30)) < 30


@pytest.mark.parametrize(
    ("frames", "calibration", "evaluated"), [(2, [2], 2), (5, [4], 5), (9, [4, 4], 9), (30, [4, 4], 22)]
)
def test_calibration_and_evaluation_share_only_short_videos(
    tmp_path: Path, frames: int, calibration: list[int], evaluated: int
) -> None:
    path = write_video(tmp_path / "v.mp4", frames)
    data = video_data(path, 36, 8)
    clip = decode_video(path, 44)
    assert data.labels is None
    assert [len(piece) for piece in data.calibration] == calibration
    assert torch.equal(data.videos[0], clip[-evaluated:])
    assert ("also calibrated on" in data.name) == (frames == evaluated)


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("this is no video at all\n" * 40)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("image", "arrays"):
        path = folder / ("frame.png" if kind == "image" else "clip.npz")
        path.write_bytes(b"whatever it holds")
    elif kind == "still":
        write_video(path, 1)
    elif kind == "cut":
        write_video(path, 30)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        path = folder / "sound.wav"
        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(16000))
    return path


BAD = {
    "missing": "does not exist; --video takes",
    "folder": "is a folder; --video takes",
    "text": "cannot be decoded (",
    "empty": "cannot be decoded (",
    "cut": "cannot be decoded (",
    "image": "is an image, not a video; give its folder",
    "arrays": "holds arrays, not a video; numpy.load reads it; --video takes",
    "sound": "has no video stream, only audio; --video takes",
    "still": "has 1 frame(s); residuals need at least two",
}


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_files_are_answered_in_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bad_file(kind, tmp_path)
    with pytest.raises(VideoError) as raised:
        decode_video(path, 8)
    assert str(path) in str(raised.value)
    assert BAD[kind] in str(raised.value)

    assert main(["demo", "--video", str(path), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert path.name in captured.err
    assert BAD[kind] in captured.err
    assert "Traceback" not in captured.err


def test_missing_decoder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"av is not installed; write: pip install 'resq-plugin\[report\]'"):
        decode_video(path, 2)
