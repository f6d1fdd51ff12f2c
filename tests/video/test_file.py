"""Video files: frame i is what a player shows as frame i, in whatever order and however the file was made."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from films import LOSSLESS, av, copied_from, cut_off, decoded, encode, pictures, sound, with_matrix

from resq_plugin.errors import MissingExtraError, VideoError
from resq_plugin.video import VideoFile

FRAMES = 41
OPEN_GROUPS = {"g": "12", "bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
KINDS = {
    "b_frames.mp4": {"codec": "libx264", "g": "12", "bf": "3"},
    "index_first.mp4": {"codec": "libx264", "g": "12", "bf": "3", "container": {"movflags": "faststart"}},
    "fragments.mp4": {"codec": "libx264", "g": "12", "container": {"movflags": "frag_keyframe+empty_moov"}},
    "open_groups.mp4": {"codec": "libx264", **OPEN_GROUPS},
    "open_groups.mkv": {"codec": "libx264", **OPEN_GROUPS},
    "open_groups.ts": {"codec": "libx264", **OPEN_GROUPS},
    "refresh.mp4": {"codec": "libx264", "bf": "0", "x264-params": "intra-refresh=1:keyint=10"},
    "intra.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4", "bf": "2"},
    "h264_without_times.avi": {"codec": "libx264", "bf": "2"},
    "stream.h264": {"codec": "libx264", "bf": "2"},
    "mpeg2.mpg": {"codec": "mpeg2video", "bf": "2"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(params=list(KINDS))
def film(request: pytest.FixtureRequest, folder: Path) -> Path:
    path = folder / request.param
    return path if path.exists() else encode(path, **KINDS[request.param])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


# --- order ----------------------------------------------------------------------------------------------------------


def test_any_order_gives_the_frames_of_decoding_from_the_start(film: Path) -> None:
    expected, video = decoded(film), VideoFile(film)

    assert len(video) == len(expected) == FRAMES
    for index in [*range(FRAMES), *random.Random(0).sample(range(FRAMES), FRAMES), 5, 5, 4, 40, 0]:
        assert same(video[index], expected[index]), index
    assert all(map(same, video, expected))


def test_pictures_come_bit_for_bit_and_in_the_order_of_channels_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", frames=9, **LOSSLESS)

    assert all(map(same, VideoFile(path), pictures(9)))
    assert all(same(a, b[..., ::-1]) for a, b in zip(VideoFile(path, order="bgr"), pictures(9), strict=True))
    assert VideoFile(path).rate == 25


def test_a_variable_frame_rate_changes_nothing(tmp_path: Path) -> None:
    times = [0, 10, 300, 301, 1000, 1040, 5000, 5001, 5002]
    path = encode(tmp_path / "a.mkv", frames=9, times=times, g="3", bf="2", **LOSSLESS)
    video = VideoFile(path)

    assert len(video) == 9
    assert all(same(video[index], pictures(9)[index]) for index in (8, 2, 6, 0, 7, 1, 5, 3, 4))


# --- what an edit list hides, and what cannot be decoded -------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 8, 13])
def test_frames_that_an_edit_list_hides_are_none(tmp_path: Path, first: int) -> None:
    cv2 = pytest.importorskip("cv2")
    whole = encode(tmp_path / "whole.mp4", frames=20, g="20", bf="0", **LOSSLESS)
    path = copied_from(whole, tmp_path / "trimmed.mp4", 512 * first, keep_earlier=True)
    video, capture = VideoFile(path), cv2.VideoCapture(str(path))
    seen = [frame for found, frame in (capture.read() for _ in range(25)) if found]

    assert len(video) == len(seen) == 20 - first
    for index in (0, 11 - first, 19 - first, 3, 2):
        if index >= 0:
            assert same(video[index], pictures(20)[first + index])
            assert same(video[index][..., ::-1], seen[index])


def test_frames_before_the_first_that_can_be_decoded_are_none(tmp_path: Path) -> None:
    for source, name in (("open_groups.mkv", "a.mkv"), ("open_groups.mkv", "a.mp4"), ("open_groups.ts", "a.ts")):
        whole = encode(tmp_path / source, **KINDS[source])
        with av.open(str(whole)) as container:
            times = sorted(packet.pts for packet in container.demux(video=0) if packet.size)
            container.seek(0)
            second = [packet for packet in container.demux(video=0) if packet.is_keyframe][1].pts
        path = copied_from(whole, tmp_path / name, second, keep_earlier=False)
        first, video, shown = times.index(second), VideoFile(path), decoded(path)
        assert len(video) == len(shown) == FRAMES - first
        assert all(map(same, video, shown))
        assert all(map(same, video, decoded(whole)[first:]))


# --- rotation --------------------------------------------------------------------------------------------------------

MATRICES = [
    *[(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)],  # 0, 90, 180, 270 degrees clockwise
    *[(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],  # mirrored
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_display_matrix_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = with_matrix(encode(tmp_path / "a.mp4", frames=3, **LOSSLESS), *matrix)
    stored, (a, b, c, d) = pictures(3)[2], matrix
    height, width = stored.shape[:2]
    shown = np.zeros((height, width, 3) if a else (width, height, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            # A negative index counts from the other edge, as the translation of a matrix does: -1 is the last.
            across, down = a * x + c * y, b * x + d * y
            shown[down - (b + d < 0), across - (a + c < 0)] = stored[y, x]

    assert same(VideoFile(path)[2], shown)
    assert same(VideoFile(path, order="bgr")[2], shown[..., ::-1])


@pytest.mark.parametrize("matrix", MATRICES[:4])
def test_rotation_is_that_of_opencv(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    path = with_matrix(encode(tmp_path / "a.mp4", frames=3, **LOSSLESS), *matrix)

    assert same(VideoFile(path, order="bgr")[0], cv2.VideoCapture(str(path)).read()[1])


def test_another_angle_is_refused(tmp_path: Path) -> None:
    path = with_matrix(encode(tmp_path / "a.mp4", frames=3), 1, 1, -1, 1)
    with pytest.raises(VideoError, match=r"shown turned by -?45 degrees; only multiples of 90"):
        VideoFile(path)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_grey_is_three_times_itself(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", "ffv1", 3, pixels="gray")
    frame = VideoFile(path)[2]

    assert frame.shape == (48, 64, 3)
    assert (frame == frame[..., :1]).all()
    assert frame[2, 2, 0] == 10


def test_another_size_in_the_middle_is_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / f"{n}.mkv", "mjpeg", [np.full((*size, 3), 100, np.uint8)] * 2, pixels="yuvj420p")
        for n, size in enumerate([(48, 64), (24, 32)])
    ]
    with av.open(str(tmp_path / "both.mkv"), "w") as out:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packet.pts = packet.dts = packet.pts + 80 * number
                        out.mux(packet)
    video = VideoFile(tmp_path / "both.mkv")

    assert [frame.shape for frame in video] == [(48, 64, 3)] * 4
    assert all(abs(frame.astype(int) - 100).max() <= 2 for frame in video)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["index_first.mp4", "fragments.mp4", "vp9.webm", "open_groups.mkv", "mpeg4.avi"])
def test_a_file_that_breaks_off_tells_where_and_its_beginning_can_be_used(name: str, tmp_path: Path) -> None:
    whole = encode(tmp_path / name, **KINDS[name])
    path = cut_off(whole, 0.6)
    missing = whole.stat().st_size - path.stat().st_size

    with pytest.raises(VideoError, match=r"breaks off after (\d+) whole frames .*frames=\1") as raised:
        VideoFile(path)
    count = int(re.search(r"after (\d+) whole", str(raised.value))[1])
    assert 5 < count < 35
    assert str(path) in str(raised.value)
    if name != "fragments.mp4":  # nobody knows how many fragments would follow
        assert f"{missing} of {whole.stat().st_size} bytes are missing" in str(raised.value)
    video = VideoFile(path, partial=True)
    assert all(map(same, video, decoded(whole)[:count]))
    assert len(video) == count
    with pytest.raises(VideoError, match=rf"frames 0 to {count - 1}; frame {count} was asked for. It breaks off"):
        video[count]


@pytest.mark.parametrize("share", [0.4, 0.55, 0.6, 0.75])
def test_a_cut_broadcast_recording_has_the_frames_of_the_whole_one(share: float, tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.ts", bf="2", g="12")
    video = VideoFile(cut_off(whole, share), partial=True)  # of a stream nobody can tell whether it is all there

    assert 5 < len(video) < 35
    assert all(map(same, list(video)[:-3], decoded(whole)))


@pytest.mark.parametrize("name", ["stream.h264", "mpeg2.mpg", "h264_without_times.avi"])
def test_a_recording_that_was_cut_ends_in_whole_frames(name: str, tmp_path: Path) -> None:
    whole = encode(tmp_path / name, **KINDS[name])
    path = cut_off(whole, 0.6)

    with pytest.raises(VideoError, match=r"breaks off after \d+ whole frames"):
        VideoFile(path)
    video = VideoFile(path, partial=True)
    assert 5 < len(video) < 35
    assert all(map(same, video, decoded(whole)[: len(video)]))


def test_an_mp4_without_its_index_tells_what_is_missing(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mp4", frames=9)
    path = cut_off(whole, 0.7)

    with pytest.raises(VideoError, match=r"cannot be read as a video: .*; \d+ bytes at its end are missing\)"):
        VideoFile(path)


def test_damage_in_the_middle_is_told_by_its_frame_and_the_rest_is_readable(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", frames=30, g="10", bf="0")
    with av.open(str(path)) as container:
        broken = [packet for packet in container.demux(video=0) if packet.size][13]
        place, size = broken.pos, broken.size
    expected = decoded(path)
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    video = VideoFile(path)

    assert len(video) == 30
    readable = []
    for index in random.Random(1).sample(range(30), 30):
        try:
            assert same(video[index], expected[index]), index
            readable.append(index)
        except VideoError as error:
            assert re.search(rf"frame {index} \({index / 25:.2f} s\) of 30 in .*a.mp4", str(error))  # noqa: PT017
    assert {*range(13), *range(20, 30)} <= set(readable)
    assert 13 not in readable


def bad(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("this is no video at all\n" * 40)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        sound(path)
    elif kind == "image":
        from PIL import Image

        path = folder / "image.png"
        Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "does not exist; give a video file"),
        ("folder", "is a folder; give a video file"),
        ("text", "cannot be read as a video: it cannot be decoded (Invalid data"),
        ("empty", "cannot be read as a video: it cannot be decoded ("),
        ("sound", "has no video stream, only audio; give"),
        ("image", "is an image, not a video"),
    ],
)
def test_what_is_no_video_is_named(kind: str, text: str, tmp_path: Path) -> None:
    path = bad(kind, tmp_path)
    with pytest.raises(VideoError) as raised:
        VideoFile(path)
    assert str(raised.value).startswith(f"{path} {text}")
    with pytest.raises(VideoError, match=r"; --video takes a film\.$"):
        VideoFile(path, advice="--video takes a film.")


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        music, cover = out.add_stream("aac", rate=8000), out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(pictures(1)[0], format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        out.mux(music.encode(frame))
        for stream in (music, cover):
            out.mux(stream.encode(None))
    with pytest.raises(
        VideoError, match=r"has no video stream, only (a cover picture, audio|audio, a cover picture);"
    ):
        VideoFile(path)


@pytest.mark.parametrize("name", ["a:b.mp4", "100%d.mp4", "[x] y.mp4", "ü #1.mp4"])
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    path = encode(tmp_path / "plain.mp4", frames=2).rename(tmp_path / name)
    assert len(VideoFile(path)) == len(list(VideoFile(str(path)))) == 2


def test_a_frame_outside_is_refused(tmp_path: Path) -> None:
    video = VideoFile(encode(tmp_path / "a.mp4", frames=4))
    for index in (4, -1):
        with pytest.raises(VideoError, match=rf"frames 0 to 3; frame {index} was asked for\.$"):
            video[index]


def test_missing_decoder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", frames=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'resq-plugin\[video\]'"):
        VideoFile(path)


# --- threads and processes -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["b_frames.mp4", pytest.param("mpeg4.avi", marks=pytest.mark.slow)])
def test_a_fork_neither_uses_nor_frees_the_decoders_of_its_parent(kind: str, tmp_path: Path) -> None:
    """GIVEN decoders with threads, WHEN a process forks again and again, THEN no child waits for threads it lacks."""
    path = encode(tmp_path / kind, **KINDS[kind])
    expected = decoded(path)[5]
    for _ in range(20):
        videos = [VideoFile(path) for _ in range(8)]
        assert all(len(video[3]) for video in videos)
        child = os.fork()
        if not child:
            signal.alarm(20)  # a child that hangs ends with this signal
            right = all(same(video[5], expected) for video in videos)
            del videos
            gc.collect()
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_threads_pickles_and_forks_read_the_same(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", g="12", bf="3")
    expected, video = decoded(path), VideoFile(path, order="bgr")
    order = random.Random(0).sample(range(FRAMES), FRAMES)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(video.__getitem__, order))
    assert all(same(frame[..., ::-1], expected[index]) for index, frame in zip(order, found, strict=True))
    copy = pickle.loads(pickle.dumps(video))
    assert same(copy[7], video[7])
    with multiprocessing.get_context("fork").Pool(2) as processes:
        found = processes.map(video.__getitem__, order)
    assert all(same(frame[..., ::-1], expected[index]) for index, frame in zip(order, found, strict=True))
    assert same(video[8][..., ::-1], expected[8])
