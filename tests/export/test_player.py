"""`OrtStream`: one video through an exported folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ZOO, build, play, seeded, video

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.errors import ConfigError, ExportError, FrameError
from resq_plugin.export import OrtStream, export_model
from resq_plugin.method.layers import residual_layers

FRAMES = video(7)


@pytest.fixture(scope="module", params=["float", "running"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("export") / "out"
    model = build("residual", "W8A8->W4A4", reference=request.param, interval=3)
    export_model(model, FRAMES, folder, encodings=())
    return folder, [output.numpy() for output in play(model, FRAMES)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_it_plays_what_torch_plays(exported: tuple[Path, list[np.ndarray]]) -> None:
    folder, expected = exported
    positions = []
    with OrtStream(folder, threads=1) as player:
        found = []
        for frame in FRAMES:
            found.append(player(frame.numpy()))
            positions.append((player.position, player.is_keyframe))

    assert_close(found, expected)
    assert positions == [(t % 3, t % 3 == 0) for t in range(7)]


def test_fitted_weights_and_biases_are_exported(tmp_path: Path) -> None:
    config = ResQConfig.parse("W4A4->W3A4", weights="channel", calibration={"fit": "weights", "positions": 512})
    model = convert(seeded(ZOO["plain"]), config)
    calibrate(model, [video(3, seed=seed) for seed in range(4)])
    layers = residual_layers(model).values()
    assert any(layer._buffers["keyframe_rounding"] is not None for layer in layers)
    assert any(bool(layer._buffers["bias_correction"].any()) for layer in layers)
    export_model(model, FRAMES, tmp_path / "out", encodings=())
    with OrtStream(tmp_path / "out", threads=1) as player:
        assert_close([player(frame.numpy()) for frame in FRAMES], [z.numpy() for z in play(model, FRAMES)])


def test_memory_is_never_copied(exported: tuple[Path, list[np.ndarray]]) -> None:
    player = OrtStream(exported[0], threads=1)
    pointers = []
    for frame in FRAMES:
        player(frame.numpy())
        pointers.append({name: value.data_ptr() for name, value in player._memory.items()})

    # One buffer per cache, or two that take turns where residual frames write new memory.
    buffers = {name: {found[name] for found in pointers} for name in pointers[0]}
    assert {len(found) for found in buffers.values()} == ({2} if player._updates_memory else {1})


def test_reset_and_start_interval(exported: tuple[Path, list[np.ndarray]]) -> None:
    folder, expected = exported
    player = OrtStream(folder, threads=1)
    player(FRAMES[3].numpy())
    player(FRAMES[4].numpy())
    player.reset()
    assert player.position == -1
    assert_close([player(frame.numpy()) for frame in FRAMES], expected)

    player.start_interval()
    player(FRAMES[0].numpy())
    assert player.is_keyframe


def test_a_longer_interval_and_two_streams_side_by_side(exported: tuple[Path, list[np.ndarray]]) -> None:
    folder, expected = exported
    one, other = OrtStream(folder, threads=1), OrtStream(folder, threads=1, interval=7)
    found = [(one(frame.numpy()), other(frame.numpy()))[0] for frame in FRAMES]

    assert_close(found, expected)
    assert other.position == 6


def test_a_bad_frame_leaves_the_stream_as_it_was(exported: tuple[Path, list[np.ndarray]]) -> None:
    folder, expected = exported
    player = OrtStream(folder, threads=1)
    found = [player(FRAMES[0].numpy())]
    bad = FRAMES[1].numpy().copy()
    bad[0, 0, 0, 0] = np.nan
    for frame, text in [
        (bad, "NaN or Inf"),
        (FRAMES[1][:1].numpy(), r"takes frames \(2, 3, 12, 16\) float32 \(numpy\); got \(1, 3, 12, 16\)"),
        (FRAMES[1].numpy().astype(np.float64), "float64"),
        (FRAMES[1], "Tensor"),
    ]:
        with pytest.raises(FrameError, match=text):
            player(frame)
    assert_close([*found, *(player(frame.numpy()) for frame in FRAMES[1:])], expected)


def test_the_folder_is_enough(exported: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    """Another process that has no model plays the video."""
    folder, expected = exported
    np.save(tmp_path / "frames.npy", torch.stack(FRAMES).numpy())
    script = (
        "import sys, numpy as np\n"
        "from resq_plugin.export.player import OrtStream\n"
        "player = OrtStream(sys.argv[1], threads=1)\n"
        "np.save(sys.argv[3], np.stack([player(frame) for frame in np.load(sys.argv[2])]))\n"
    )
    paths = [str(folder), str(tmp_path / "frames.npy"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", script, *paths], check=True)

    assert_close(list(np.load(tmp_path / "out.npy")), expected)


def test_scene_changes_start_an_interval_as_in_torch(tmp_path: Path) -> None:
    schedule = {"kind": "scene_change", "threshold": 0.5}
    model = build("plain", "W8A8->W4A8", interval=5, schedule=schedule)
    frames = [*video(3), *video(3, seed=9)]
    export_model(model, frames, tmp_path / "out", encodings=())
    player = OrtStream(tmp_path / "out", threads=1)

    positions = []
    for frame in frames:
        player(frame.numpy())
        positions.append(player.position)

    assert positions == [0, 1, 2, 0, 1, 2]


def test_errors_name_what_to_write(exported: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='hpt' is not allowed.*Did you mean 'htp'"):
        OrtStream(exported[0], device="hpt")
    with pytest.raises(ConfigError, match="interval=0"):
        OrtStream(exported[0], interval=0)
    with pytest.raises(ExportError, match=r"not exported for the HTP.*--target htp"):
        OrtStream(exported[0], device="htp")
    with pytest.raises(ExportError, match=r"is no exported folder: it has no manifest\.json"):
        OrtStream(tmp_path)
