"""Folders of frames: nothing is dropped, nothing is added, and every kind of image is read as OpenCV reads it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from films import encode
from PIL import Image

from resq_plugin.errors import VideoError
from resq_plugin.video import ImageFolder, VideoFile, frame_files, natural_key, read_image, video_sources
from resq_plugin.video.truncation import missing_bytes

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)


def image(path: Path, value: int = 0, size: tuple[int, int] = (8, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_files_come_in_natural_order_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for name in ("f10.png", "f9.PNG", "f1.JPG", "f2.jpg", "f3.Jpeg", "f11.BMP"):
        image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "f4.png").mkdir()

    assert names(frame_files(tmp_path), tmp_path) == ["f1.JPG", "f2.jpg", "f3.Jpeg", "f9.PNG", "f10.png", "f11.BMP"]
    assert names(frame_files(tmp_path, (".png",)), tmp_path) == ["f9.PNG", "f10.png"]
    assert frame_files(tmp_path / "nowhere") == []
    assert sorted(["x²1", "x²", "x٣"], key=natural_key) == ["x²", "x²1", "x٣"]  # digits of other kinds are text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("f1", "f2", "f3"), ""),
        (("f2", "f4", "f6"), ""),  # every second one
        (("a", "b", "c", "d"), ""),  # no numbers
        (("f9", "f10"), ""),  # one step is its own measure
        (("f1", "f2", "f3", "f7"), "frames are missing between f3.png and f7.png; what stands there"),
        (("f1", "f2", "f3", "f7", "f8", "f10"), "f3.png and f7.png, and at 1 other places; what"),
        (("a1", "a2", "a3", "b1", "b2", "b3"), "between a3.png and b1.png;"),  # two videos
        (("0001TP_006690", "0001TP_006720", "0001TP_006750", "0006R0_f00930"), "0001TP_006750.png and 0006R0_f00930"),
    ],
)
def test_missing_frames_are_told(
    files: tuple[str, ...], expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in files:
        image(tmp_path / f"{name}.png")
    with caplog.at_level(logging.WARNING):
        assert len(ImageFolder(tmp_path)) == len(files)
    assert expected in caplog.text if expected else not caplog.text


def test_files_of_desktops_are_no_frames(tmp_path: Path) -> None:
    image(tmp_path / "a/1.png")
    for name in ("a/._1.png", "a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/._1.png", "@eaDir/1.png", ".cache/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert names(frame_files(tmp_path, recursive=True), tmp_path) == ["a/1.png"]
    assert names(video_sources(tmp_path), tmp_path) == ["a"]
    assert len(ImageFolder(tmp_path / "a")) == 1


def test_sources_are_folders_and_films_also_behind_links(tmp_path: Path) -> None:
    for name in ("videos/b/1.png", "videos/a2/1.png", "videos/a10/1.jpg", "elsewhere/1.png"):
        image(tmp_path / name)
    for name in ("film.MP4", "film.x.mkv"):
        (tmp_path / "videos" / name).write_bytes(b"")
    (tmp_path / "videos/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos/b/up").symlink_to(tmp_path / "videos")
    root = tmp_path / "videos"

    assert names(video_sources(root), root) == ["a2", "a10", "b", "film.MP4", "film.x.mkv", "link"]
    assert video_sources(root / "film.MP4") == [root / "film.MP4"]


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "grey jpeg", "turned jpeg", "CMYK"])
def test_every_kind_of_image_is_read_as_opencv_does(kind: str, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path, options = tmp_path / ("a.jpg" if kind in ("grey jpeg", "turned jpeg", "CMYK") else "a.png"), {}
    picture = Image.fromarray(PIXELS)
    if kind == "I;16":
        cv2.imwrite(str(path), PIXELS[..., 0].astype(np.uint16) * 256 + 77)
    else:
        if kind == "turned jpeg":
            exif = Image.Exif()
            exif[0x0112] = 6  # shown after a quarter turn clockwise
            options = {"exif": exif}
        else:
            picture = picture.convert("L" if kind == "grey jpeg" else kind)
        picture.save(path, **options)
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    found = read_image(path)

    assert (found.shape, found.dtype) == (expected.shape, np.uint8)
    limit = 3 if path.suffix == ".jpg" else 0  # decoders of JPEG round differently
    assert np.abs(found.astype(int) - expected).max() <= limit
    if kind == "turned jpeg":
        assert found.shape == (12, 8, 3)
    if kind == "I;16":
        assert np.array_equal(found[..., 0], PIXELS[..., 0])


def test_what_is_no_frame_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    with pytest.raises(VideoError, match="frames does not exist; give a video file"):
        ImageFolder(folder)
    folder.mkdir()
    with pytest.raises(VideoError, match=r"frames holds no frame \(\.png, \.jpg, \.jpeg, \.bmp\); give a folder"):
        ImageFolder(folder)
    encode(folder / "film.mp4", frames=2)
    with pytest.raises(
        VideoError, match=r"holds no frame .* itself but 1 video\(s\) below; give one, e.g. .*film.mp4"
    ):
        ImageFolder(folder)
    whole = folder / "1.png"
    Image.fromarray(PIXELS).save(whole)
    whole.write_bytes(whole.read_bytes()[:160])
    with pytest.raises(VideoError, match=r"the frame .*1\.png cannot be read"):
        ImageFolder(folder)[0]
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "f.tif")
    with pytest.raises(VideoError, match="floating-point"):
        read_image(folder / "f.tif")


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi"])
def test_missing_bytes_are_counted(name: str, tmp_path: Path) -> None:
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
    container = {"movflags": "faststart"} if name in ("a.mp4", "a.mov") else {}
    path = encode(tmp_path / name, codec, 9, container=container)
    data = path.read_bytes()
    assert missing_bytes(path) == 0
    for lost in (1, len(data) // 3):
        path.write_bytes(data[:-lost])
        assert missing_bytes(path) == lost
    path.write_bytes(data + b"\0" * 100)
    assert missing_bytes(path) == 0


@pytest.mark.parametrize(
    "content", [b"", b"\x1a\x45\xdf\xa3", b"\0\0\0\0ftyp", b"RIFF", b"\x1a\x45\xdf\xa3\x00", b"no"]
)
def test_what_tells_no_size_lacks_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert missing_bytes(path) == 0


def test_a_live_recording_without_a_size_is_whole(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", frames=9, container={"live": "1"})
    assert missing_bytes(path) == 0
    assert len(VideoFile(path)) == 9
