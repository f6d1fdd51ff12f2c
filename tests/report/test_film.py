"""The film of schemes side by side: what a browser gets, and what is on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resq_plugin.errors import ReportError
from resq_plugin.report import draw_bits, draw_joints, draw_labels, drawer_of, pictures_of, write_film
from resq_plugin.report.film import GAP, TITLE, tiles
from resq_plugin.report.style import BIT_COLOURS


def flat(value: int, height: int = 30, width: int = 41) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def test_pictures_stand_side_by_side_with_titles_above() -> None:
    frames = tiles({"Video": [flat(10), flat(20)], "Float": [flat(100), flat(110)]})
    assert len(frames) == 2
    height, width, channels = frames[0].shape
    assert (height, width, channels) == (TITLE + 30, 2 * 41 + GAP, 3)
    assert height % 2 == width % 2 == 0
    assert (frames[1][TITLE : TITLE + 30, :41] == 20).all()
    assert (frames[1][TITLE : TITLE + 30, 41 + GAP : 82 + GAP] == 110).all()
    assert (frames[1][:TITLE] < 128).any()  # a title is dark on white


def test_more_than_three_take_two_rows_and_wide_ones_shrink() -> None:
    names = {f"column {index}": [flat(index, 200, 1001)] for index in range(5)}
    (frame,) = tiles(names)
    assert frame.shape[1] <= 1920
    assert frame.shape[0] > 2 * TITLE
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0


def test_the_film_is_h264_that_every_browser_plays(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = write_film(tmp_path / "new" / "film.mp4", {"a": [flat(10 * t, 64, 96) for t in range(12)]}, rate=5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 5
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(pictures) == 12
    assert abs(int(np.median(pictures[7][TITLE:, :96])) - 70) <= 3
    head = path.read_bytes()
    assert 0 < head.find(b"moov") < head.find(b"mdat")  # plays before it is loaded


@pytest.mark.parametrize(
    "columns", [{}, {"a": []}, {"a": [flat(1)], "b": [flat(1), flat(2)]}, {"a": [flat(1)], "b": [flat(1, 8)]}]
)
def test_pictures_that_do_not_fit_are_refused(columns: dict[str, list[torch.Tensor]]) -> None:
    with pytest.raises(ReportError, match="the pictures of a film must be of one size and number"):
        tiles(columns)


def test_labels_are_drawn_in_their_colours_over_gray() -> None:
    draw = draw_labels([(255, 0, 0), (0, 0, 255)])
    drawn = draw(flat(100, 2, 4), torch.tensor([[[0, 1]]]))
    assert drawn.shape == (3, 2, 4)
    assert drawn[:, 0, 0].tolist() == [round(0.6 * 255 + 40), 40, 40]
    assert drawn[:, 1, 3].tolist() == [40, 40, round(0.6 * 255 + 40)]


def test_joints_are_dots_at_their_places_and_may_lie_outside() -> None:
    drawn = draw_joints(flat(0, 40, 60), torch.tensor([[[10.0, 20.0, 5.0], [-100.0, 3.0, 5.0]]]))
    assert drawn[:, 20, 10].any()
    assert not drawn[:, :, 20:].any()
    assert not drawn[:, :15].any()


def test_bits_have_the_colours_of_the_pool_and_shades_between() -> None:
    drawn = draw_bits(flat(0, 1, 4), torch.tensor([[0.0, 4.0, 8.0, 2.0]]), (0, 4, 8))
    first, second, third = (list(bytes.fromhex(colour[1:])) for colour in BIT_COLOURS[:3])
    assert drawn[:, 0, 0].tolist() == first
    assert drawn[:, 0, 1].tolist() == second
    assert drawn[:, 0, 2].tolist() == third
    assert drawn[:, 0, 3].tolist() == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], abs=0.5)


def test_what_is_drawn_is_told_by_the_looks_of_a_prediction() -> None:
    assert drawer_of(torch.zeros(1, 4, 4, dtype=torch.int64)) is not None
    assert drawer_of(torch.zeros(1, 17, 3)) is draw_joints
    assert drawer_of(torch.zeros(1, 10)) is None


def test_normalised_frames_become_pictures() -> None:
    first, second = pictures_of([torch.full((1, 3, 2, 2), -1.5), torch.full((1, 3, 2, 2), 0.5)])
    assert int(first.max()) == 0
    assert int(second.min()) == 255
    assert pictures_of([torch.rand(1, 1, 2, 2)])[0].shape == (3, 2, 2)
