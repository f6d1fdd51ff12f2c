"""The folder: whole or not at all, checked, and described by its manifest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Plain, build, seeded, video
from torch import nn

from resq_plugin import ResQConfig, convert
from resq_plugin.errors import ConfigError, ExportError
from resq_plugin.export import OrtStream, export_model, verify
from resq_plugin.export.golden import Golden
from resq_plugin.export.manifest import Manifest


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "out"
    export_model(build("plain", "W8A8->W4A4", reference="quantized"), video(3), folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(original, tmp_path / "out"))


def test_the_manifest_describes_every_file_and_tensor(folder: Path) -> None:
    manifest = Manifest.read(folder)

    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest.files) == files - {"manifest.json"}
    assert manifest.config["precision"] == "W8A8->W4A4"
    assert ResQConfig.from_dict(manifest.config).reference == "quantized"
    assert manifest.versions["torch"] == torch.__version__
    assert [cache.name for cache in manifest.caches] == ["0.x", "3.x", "5.x", "0.z", "3.z", "5.z"]
    # x: (2, 3, 12, 16), (2, 8, 12, 16), (2, 8, 6, 8) int8; z: (2, 8, 12, 16), (2, 8, 6, 8), (2, 4, 6, 8) float32.
    expected = [2 * 3 * 192, 2 * 8 * 192, 2 * 8 * 48, 4 * 2 * 8 * 192, 4 * 2 * 8 * 48, 4 * 2 * 4 * 48]
    assert [cache.bytes for cache in manifest.caches] == expected
    values = json.loads((folder / "manifest.json").read_text())
    assert values["state_bytes"] == sum(expected)
    assert [cache["bytes"] for cache in values["caches"]] == expected
    assert dataclasses.replace(manifest) == Manifest.read(folder)


@pytest.mark.parametrize(
    "name", ["keyframe.onnx", "residual.onnx", "golden.npz", "parts.npz", "encodings/keyframe.1.0.0.encodings"]
)
def test_a_changed_or_missing_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for use in (OrtStream, verify):
        with pytest.raises(ExportError, match=rf"{path.name} was changed after the export"):
            use(folder)
    path.unlink()
    with pytest.raises(ExportError, match=rf"{path.name} is missing"):
        verify(folder)


def test_a_damaged_manifest_is_named(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    for damaged in (text[: len(text) // 2], "[]", text.replace('"caches"', '"cashes"'), "{}"):
        (folder / "manifest.json").write_text(damaged)
        with pytest.raises(ExportError, match=r"manifest\.json is damaged.*export the model again"):
            Manifest.read(folder)
    (folder / "manifest.json").write_text(text.replace('"version": 1', '"version": 2', 1))
    with pytest.raises(ExportError, match="has version 2; this release reads version 1"):
        Manifest.read(folder)


def test_what_is_there_already_stays_unless_it_is_an_export(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("words")
    model = build("plain")
    with pytest.raises(ExportError, match="thesis exists and is no earlier export"):
        export_model(model, video(2), other)
    assert (other / "chapter1.tex").read_text() == "words"

    before = Manifest.read(folder)
    assert export_model(model, video(2), folder, encodings=()) != before
    assert not (folder / "encodings" / "keyframe.1.0.0.encodings").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "thesis"]


def test_a_failure_leaves_nothing_and_the_earlier_export_whole(folder: Path, tmp_path: Path) -> None:
    class Fussy(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    model = build("plain")
    model[2] = Fussy(8, 8, 1)
    with pytest.raises(RuntimeError, match="no"):
        export_model(model, video(2), folder)

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert verify(folder).passed


def test_errors_name_what_to_write(tmp_path: Path) -> None:
    model = build("plain")
    with pytest.raises(ExportError, match=r"takes frames \(N, C, H, W\) float32 of one shape; got .*float64"):
        export_model(model, [video(1)[0].double()], tmp_path / "out")
    with pytest.raises(ExportError, match="got none"):
        export_model(model, [], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"encodings version '3\.0'"):
        export_model(model, video(1), tmp_path / "out", encodings=("3.0",))
    bare = convert(nn.Sequential(nn.Conv2d(3, 4, 1)), "W8A8->W4A4")
    with pytest.raises(ExportError, match=r"layer 0 has no range; call resq_plugin\.calibrate"):
        export_model(bare, video(1), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_two_frames_are_enough_and_the_golden_clip_is_small(tmp_path: Path) -> None:
    clip = video(2)
    export_model(build("plain"), clip, tmp_path / "out", encodings=())

    golden = Golden.read(tmp_path / "out" / "golden.npz")
    assert len(golden.frames) == 10
    for found, frame in zip(golden.frames, clip, strict=False):
        # 8 bits: half a step of 2 max|x| / 254 at most.
        assert np.abs(found - frame.numpy()).max() <= float(frame.abs().max()) / 254 * 1.001
    assert np.array_equal(golden.frames[2], np.roll(golden.frames[1], 1, -1))
    assert verify(tmp_path / "out").passed


def test_a_single_frame_is_refused_where_residual_frames_are_to_be_verified(tmp_path: Path) -> None:
    frame = video(1, (1, 3, 12, 16))[0]
    for single in (frame, [frame], frame[None]):
        with pytest.raises(ExportError, match=r"clip has one frame \(1, 3, 12, 16\).*at least two consecutive frames"):
            export_model(build("plain"), single, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    export_model(build("plain", "W8A8"), frame, tmp_path / "out", encodings=())  # no residual frames
    assert verify(tmp_path / "out").passed


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (2, 3, 12, 16)])
def test_a_clip_is_a_tensor_in_time_or_a_list_and_means_the_same(tmp_path: Path, shape: tuple[int, ...]) -> None:
    frames = video(4, shape)
    model = build("plain", frames=frames)
    export_model(model, frames, tmp_path / "list", encodings=())
    clip = torch.stack(frames)  # (T, N, C, H, W)
    same = {"tensor": clip} | ({"clip": clip[:, 0]} if shape[0] == 1 else {})  # (T, C, H, W)
    for name, given in same.items():
        manifest = export_model(model, given, tmp_path / name, encodings=())
        assert manifest.graphs["keyframe"].inputs[0].shape == shape
        ours, expected = (Golden.read(tmp_path / folder / "golden.npz") for folder in (name, "list"))
        assert all(map(np.array_equal, ours.frames, expected.frames))


def test_residual_weights_that_round_to_zero_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One channel of 8 is 100 times the others: with one scale 4 bits leave nothing of those, 8 bits do."""
    for weights, warned in (("tensor", True), ("channel", False)):
        net = seeded(Plain)
        with torch.no_grad():
            net[0].weight.mul_(0.01)
            net[0].weight[3].mul_(100)
        caplog.clear()
        export_model(build(net, "W8A8->W4A4", weights=weights), video(2), tmp_path / weights, encodings=())
        named = [record.getMessage() for record in caplog.records if "residual weights of 1 layers" in record.message]
        assert bool(named) is warned
        if warned:
            assert "0 (88 %)" in named[0]
            assert "weights='channel'" in named[0]


def test_exporting_leaves_the_model_alone(tmp_path: Path) -> None:
    model = build("residual").train()
    before = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}

    export_model(model, video(2), tmp_path / "out", encodings=())

    assert model.training
    assert model.head.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
