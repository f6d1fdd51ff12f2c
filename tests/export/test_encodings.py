"""Encodings files: what AIMET itself writes for the same grids, and true bit widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import build, video

from resq_plugin.errors import ConfigError
from resq_plugin.export.encodings import check_versions, encodings_file
from resq_plugin.export.grid import Grid

pytestmark = pytest.mark.filterwarnings("ignore")  # AIMET's own


def entry(version: str, grid: Grid) -> Any:
    values = encodings_file(version, {"t": grid}, {}, {})
    if version == "2.0.0":
        return {key: value for key, value in values["encodings"][0].items() if key != "name"}
    found = values["activation_encodings"]
    if version == "1.0.0":
        return {key: value for key, value in found[0].items() if key != "name"}
    return found["t"]


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for the last bit of a float."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6)
    else:
        assert found == expected


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_a_tensor_is_written_as_aimet_writes_it(version: str, bits: int, signed: bool) -> None:
    affine = pytest.importorskip("aimet_torch.quantization.affine")
    quantizer = affine.QuantizeDequantize((), bitwidth=bits, symmetric=signed)
    quantizer.set_range(torch.tensor(-1.0 if signed else 0.0), torch.tensor(1.0))
    grid = Grid((float(quantizer.get_scale()),), bits, signed)

    assert_same(entry(version, grid), quantizer.get_encodings().to_qnn_encoding_dict(version))


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0"])
def test_offsets_and_channels_are_written_as_aimet_writes_them(version: str) -> None:
    affine = pytest.importorskip("aimet_torch.quantization.affine")
    asymmetric = affine.QuantizeDequantize((), bitwidth=8, symmetric=False)
    asymmetric.set_range(torch.tensor(-0.5), torch.tensor(2.0))
    by_channel = affine.QuantizeDequantize((2, 1, 1, 1), bitwidth=4, symmetric=True)
    by_channel.set_range(torch.full((2, 1, 1, 1), -1.0), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))

    zero_point = -int(asymmetric.get_offset())
    grid = Grid((float(asymmetric.get_scale()),), 8, signed=False, zero_point=zero_point)
    channels = Grid(tuple(by_channel.get_scale().flatten().tolist()), 4, axis=0, weight=True)

    assert_same(entry(version, grid), asymmetric.get_encodings().to_qnn_encoding_dict(version))
    assert_same(entry(version, channels), by_channel.get_encodings().to_qnn_encoding_dict(version))


def test_an_unknown_version_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'1\.0' is not known; write some of .*'1\.0\.0'"):
        check_versions(("1.0",))


def test_graphs_list_exactly_their_own_quantizers(tmp_path: Any) -> None:
    import json

    from resq_plugin.export import export_model

    export_model(build("plain", "W8A8->W3A4"), video(2), tmp_path / "out", encodings=("1.0.0", "2.0.0"))
    folder = tmp_path / "out" / "encodings"
    keyframe = json.loads((folder / "keyframe.1.0.0.encodings").read_text())
    residual = json.loads((folder / "residual.1.0.0.encodings").read_text())
    newer = json.loads((folder / "keyframe.2.0.0.encodings").read_text())["encodings"]

    assert {e["name"] for e in keyframe["param_encodings"]} == {"0.weight", "3.weight", "5.weight"}
    assert {(e["name"], e["bw"]) for e in residual["param_encodings"]} == {
        (f"{layer}.residual.weight", 3) for layer in (0, 3, 5)
    }
    assert [e["bw"] for e in keyframe["activation_encodings"]] == [8] * 3
    assert [e["bw"] for e in residual["activation_encodings"]] == [4] * 3
    assert {e["name"] for e in newer if e["output_dtype"] == "int32"} == {"0.bias", "3.bias", "5.bias"}
    assert not (folder / "keyframe.0.6.1.encodings").exists()
