from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resq_vos.davis import PALETTE, find_sequences, read_frame, read_labels, write_labels
from vos_helpers import shared, write_davis

from resq_plugin.errors import ConfigError, FrameError, VideoError


def test_the_palette_is_that_of_davis() -> None:
    colours = [tuple(PALETTE[3 * label : 3 * label + 3]) for label in range(6)]
    assert colours == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert len(PALETTE) == 768
    assert tuple(PALETTE[-3:]) == (224, 224, 192)


def test_labels_come_back(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_labels(tmp_path / "mask.png", labels)
    assert (read_labels(tmp_path / "mask.png") == labels).all()
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("L", [[0, 255], [255, 0]], [[0, 1], [1, 0]]),
        ("L", [[0, 1], [2, 2]], [[0, 1], [2, 2]]),
        ("P", [[0, 1], [255, 2]], [[0, 1], [0, 2]]),  # 255 of a palette: not annotated
        ("RGB", [[0, 255], [255, 0]], [[0, 1], [1, 0]]),
    ],
)
def test_kinds_of_masks(tmp_path: Path, mode: str, values: list[list[int]], expected: list[list[int]]) -> None:
    array = np.array(values, dtype=np.uint8)
    image = Image.fromarray(array).convert("RGB") if mode == "RGB" else Image.fromarray(array)
    if mode == "P":
        image = Image.fromarray(array, mode="P")
        image.putpalette(PALETTE)
    image.save(tmp_path / "mask.png")
    assert read_labels(tmp_path / "mask.png").tolist() == expected


def test_what_is_no_mask_is_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(FrameError, match=r"photo.png is a colour picture"):
        read_labels(tmp_path / "photo.png")
    Image.fromarray(generator.integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(FrameError, match="grey values, so it is no mask"):
        read_labels(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FrameError, match="cannot read the mask"):
        read_labels(tmp_path / "text.png")
    with pytest.raises(VideoError, match=r"the frame .*nowhere.jpg cannot be read"):
        read_frame(tmp_path / "nowhere.jpg")


def test_frames_are_rgb_from_0_to_1(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 1] = 255, 51, 0
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    frame = read_frame(tmp_path / "frame.png")
    assert frame.shape == (1, 3, 2, 3)
    assert frame[0, :, 0, 1].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_the_layout_of_2016_and_2017(tmp_path: Path) -> None:
    root = write_davis(tmp_path, single=False)
    one = find_sequences(root, year=2016)
    assert [sequence.name for sequence in one] == ["cat", "dog"]
    assert one[0].objects == (1,)
    assert set(np.unique(one[0].labels(2))) == {0, 1}
    many = find_sequences(root, ["dog"], year=2017)
    assert many[0].objects == (1, 2)
    assert many[0].labels(0).shape == (64, 88)
    assert len(many[0]) == 5

    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("dog\n")
    found = find_sequences(root)
    assert [(sequence.name, sequence.objects) for sequence in found] == [("dog", (1, 2))]


def test_what_a_folder_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of DAVIS: it has no JPEGImages"):
        find_sequences(tmp_path)
    root = write_davis(tmp_path)
    with pytest.raises(ConfigError, match="no sequence 'bird'; there are cat, dog"):
        find_sequences(root, ["bird"])
    with pytest.raises(ConfigError, match="no folder '1080p' but 240p"):
        find_sequences(root, images="1080p")
    with pytest.raises(ConfigError, match="year=2018"):
        find_sequences(root, year=2018)
    (root / "Annotations/480p/cat/00003.png").unlink()
    with pytest.raises(ConfigError, match=r"no annotation of frame 00003.jpg"):
        find_sequences(root, ["cat"])[0].labels(3)


def test_the_shared_sequences() -> None:
    root = shared("davis2016")
    sequences = find_sequences(root)
    assert len(sequences) == 16
    assert {sequence.labels(0).shape for sequence in sequences} == {(480, 854)}
