"""Export of layers that keep nothing, and of x_k and z_k in fewer bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import build, video

from resq_plugin.errors import ExportError
from resq_plugin.export import export_model, verify


def test_a_stateless_layer_is_a_keyframe_s_in_both_graphs(tmp_path: Path) -> None:
    model, frames = build("plain", state={"stateless": ["3"]}), video(3)
    manifest = export_model(model, frames, tmp_path / "out", encodings=())

    assert [cache.name for cache in manifest.caches] == ["frame.x", "5.x", "0.z", "5.z"]
    assert {layer.name: layer.precision for layer in manifest.layers}["3"] == "W8A8"
    result = verify(tmp_path / "out")
    assert result.passed
    assert result.agreement == 100


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"state": {"output_bits": 8}}, "state.output_bits=8"),
        ({"state": {"reference_bits": 16}}, "state.reference_bits=16"),
        ({"state": {"reference_bits": 8}, "reference": "running"}, "state.reference_bits=8"),
    ],
)
def test_grids_that_a_stream_measures_are_refused(tmp_path: Path, settings: dict[str, object], named: str) -> None:
    with pytest.raises(ExportError, match=rf"{named} has grids .* Write state=\{{\}}"):
        export_model(build("plain", **settings), video(2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_integers_of_the_keyframe_s_grid_are_exported(tmp_path: Path) -> None:
    config = {"reference": "quantized", "state": {"reference_bits": 8}}
    manifest = export_model(build("plain", **config), video(2), tmp_path / "out", encodings=())
    assert {cache.dtype for cache in manifest.caches if cache.name.endswith(".x")} == {"int8"}
