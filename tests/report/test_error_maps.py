"""Error maps (Fig. 1): their numbers by hand, and that the picture has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resq_plugin.errors import ReportError
from resq_plugin.report import Look, error_maps, relative_error
from resq_plugin.report.style import LOOKS


def test_errors_are_in_units_of_the_output_by_hand() -> None:
    """Pixels of norm 5 and 1: RMS √13. Errors of norm 3 and 0, so ‖z - ẑ‖ / ‖z‖ = 3 / √26."""
    exact = torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])  # (1, 2, 1, 2)
    output = exact + torch.tensor([[[[0.0, 0.0]], [[-3.0, 0.0]]]])
    error = relative_error(output, exact)
    assert error.shape == (1, 2)
    assert error.tolist() == [[pytest.approx(3 / 13**0.5), 0.0]]
    assert float(error.square().mean().sqrt()) == pytest.approx(3 / 26**0.5)
    assert not relative_error(exact, exact).any()
    assert not relative_error(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).any()  # not NaN


def test_maps_share_one_scale_and_stand_below_each_other_on_phones(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = torch.full((3, 30, 40), 128, dtype=torch.uint8)
    maps = {"small": torch.full((15, 20), 0.1), "large": torch.full((15, 20), 0.4)}
    sizes = {}
    for look in LOOKS:
        path = error_maps(picture, maps, tmp_path / f"maps{look.suffix}.png", look=look)
        pixels = np.asarray(image.open(path).convert("RGB")).astype(int)
        sizes[look] = pixels.shape[:2]
        background = pixels[0, 0]
        assert (background.mean() < 60) == look.dark
        found = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7]}
        assert any(abs(np.array(colour) - (252, 253, 191)).max() < 3 for colour in found)  # the largest: end of magma
        assert any(abs(np.array(colour) - (81, 18, 124)).max() < 6 for colour in found)  # a quarter of it
    narrow, wide = sizes[Look(narrow=True)], sizes[Look()]
    assert narrow[0] > narrow[1]
    assert wide[1] > 2 * wide[0]
    assert narrow[1] <= 620  # 4.1 inches, as every figure for phones


def test_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no map of errors to draw"):
        error_maps(torch.zeros(3, 2, 2, dtype=torch.uint8), {}, tmp_path / "maps.png")
