"""Video files: any frame in any order is the one that decoding from the start gives, in workers too."""

from __future__ import annotations

import random
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
pytest.importorskip("av")

import av
from mmengine.dataset import pseudo_collate
from mmengine.fileio import get, get_text
from mmengine.registry import DATASETS, init_default_scope
from resq_mmengine import mmcv_lite
from resq_mmengine.clips import clips_of
from resq_mmengine.video_dataset import DatasetError
from torch.utils.data import DataLoader

mmcv_lite.install()

FRAMES = 41


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def encode(path: Path, codec: str, **options: str) -> Path:
    """Write a film whose frame t has the value 5 t, with a block that moves."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 25)
        for t in range(FRAMES):
            pixels = np.full((48, 64, 3), 5 * t, np.uint8)
            pixels[8:24, t : t + 16] = 255 - 5 * t
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


@pytest.fixture(scope="module", params=["libx264", "mpeg4"])
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 with B frames and few keyframes in .mp4; MPEG-4 in .avi, which has no presentation times."""
    folder = tmp_path_factory.mktemp("film")
    if request.param == "libx264":
        return encode(folder / "film.mp4", "libx264", g="12", bf="3")
    return encode(folder / "film.avi", "mpeg4", bf="2")


def in_order(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


def test_random_order_gives_the_frames_of_decoding_from_the_start(film: Path) -> None:
    from resq_mmseg.video_file import VideoFile

    expected = in_order(film)
    video = VideoFile(film)
    assert len(video) == len(expected) == FRAMES
    order = [*range(FRAMES), *random.Random(0).sample(range(FRAMES), FRAMES), 5, 5, 4]
    for index in order:
        assert np.array_equal(video[index], expected[index]), index
    assert abs(int(expected[30][40, 40, 0]) - 150) <= 4  # the film is what it should be


def test_a_frame_outside_is_refused(film: Path) -> None:
    from resq_mmseg.video_file import VideoFile

    with pytest.raises(DatasetError, match=rf"frames 0 to {FRAMES - 1}; frame {FRAMES} was asked for"):
        VideoFile(film)[FRAMES]


def test_no_video_is_named(tmp_path: Path) -> None:
    from resq_mmseg.video_file import VideoFile

    (tmp_path / "a.mp4").write_bytes(b"no film")
    with pytest.raises(DatasetError, match=r"a.mp4 cannot be read as a video"):
        VideoFile(tmp_path / "a.mp4")


def test_pipelines_read_frames_as_files(film: Path) -> None:
    from resq_mmseg.video_file import frame_uri

    image = np.asarray(Image.open(BytesIO(get(frame_uri(film, 7)))))
    assert np.array_equal(image[..., ::-1], in_order(film)[7])
    with pytest.raises(DatasetError, match="not a text"):
        get_text(frame_uri(film, 7))


def test_a_folder_of_films_with_labels_on_some_frames_in_two_workers(film: Path, tmp_path: Path) -> None:
    for name in ("street", "alley"):
        (tmp_path / "films").mkdir(exist_ok=True)
        (tmp_path / "films" / f"{name}{film.suffix}").write_bytes(film.read_bytes())
    (tmp_path / "labels/street").mkdir(parents=True)
    Image.fromarray(np.ones((48, 64), np.uint8)).save(tmp_path / "labels/street/000012.png")
    dataset = DATASETS.build(
        {
            "type": "resq_mmseg.FrameFolder",
            "data_root": str(tmp_path),
            "data_prefix": {"img_path": "films", "seg_map_path": "labels"},
            "metainfo": {"classes": ("a", "b")},
            "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}],
            "test_mode": True,
        }
    )
    assert [(clip.name, len(clip.indices)) for clip in clips_of(dataset)] == [("alley", FRAMES), ("street", FRAMES)]
    assert [i for i in range(len(dataset)) if dataset.get_data_info(i)["labelled"]] == [FRAMES + 12]

    order = random.Random(1).sample(range(2 * FRAMES), 16)
    dataset[order[0]]  # opens the file in this process before the workers fork
    loader = DataLoader(dataset, batch_size=2, sampler=order, num_workers=2, collate_fn=pseudo_collate)
    seen = [frame for batch in loader for frame in batch["inputs"]]
    expected = in_order(film)
    for index, frame in zip(order, seen, strict=True):
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), expected[index % FRAMES])


def test_one_film_is_one_clip(film: Path) -> None:
    dataset = DATASETS.build(
        {
            "type": "resq_mmseg.FrameFolder",
            "data_prefix": {"img_path": str(film)},
            "metainfo": {"classes": ("a",)},
            "pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}],
        }
    )
    assert [(clip.name, len(clip.indices)) for clip in clips_of(dataset)] == [("film", FRAMES)]
    assert dataset[3]["data_samples"].img_path == f"resq-video://{film}#3"
