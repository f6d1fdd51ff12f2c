"""`load`: the model that a calibrated file is of, whoever wrote the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Plain, Residual, assert_equal, play, seeded, video
from torch import nn

from resq_plugin import ResQConfig, calibrate, compare, convert, load, save_checkpoint, save_ranges
from resq_plugin.errors import CheckpointError, ConversionError
from resq_plugin.method import residual_layers


def calibrated(config: ResQConfig) -> nn.Module:
    model = convert(seeded(Plain), config)
    calibrate(model, [video(3)])
    return model


CONFIG = ResQConfig.parse("W8A8->W4A{0,4,8}", interval=2, weights="channel", exclude=("3",))


def test_the_model_is_converted_as_the_file_says_and_plays_the_same(tmp_path: Path) -> None:
    model = calibrated(CONFIG)
    save_checkpoint(model, tmp_path / "model.pth")
    found = load(tmp_path / "model.pth", seeded(Plain, 5))
    assert next(iter(residual_layers(found).values())).settings.config == CONFIG
    assert_equal(play(found, video(5)), play(model, video(5)))


def test_a_file_of_mmengines_hook_is_read_too(tmp_path: Path) -> None:
    model = calibrated(CONFIG)
    torch.save({"meta": {"resq": CONFIG.to_dict()}, "state_dict": model.state_dict()}, tmp_path / "hook.pth")
    assert_equal(play(load(tmp_path / "hook.pth", seeded(Plain, 5)), video(5)), play(model, video(5)))


def test_a_row_of_a_comparison_is_read_too(tmp_path: Path) -> None:
    frames = torch.cat(video(24, (1, 3, 12, 16), motion=0.1))
    found = compare(seeded(Plain), frames, ["W8A8->W4A4"], folder=tmp_path, progress=False)
    model = load(found.checkpoint(found.rows[1]), seeded(Plain, 5))
    with torch.no_grad():
        predicted = [z.argmax(1) for z in play(model, list(frames[6:].unsqueeze(1)))]
        of_float = [seeded(Plain)(frame[None]).argmax(1) for frame in frames[6:]]
    equal = [100 * float((a == b).double().mean()) for a, b in zip(predicted, of_float, strict=True)]
    expected = [sum(equal[t::3]) / len(equal[t::3]) for t in range(3)]
    assert found.rows[1]["by_distance"] == pytest.approx(expected)


def test_what_does_not_fit_leaves_the_float_model(tmp_path: Path) -> None:
    save_checkpoint(calibrated(ResQConfig.parse("W8A8->W4A4")), tmp_path / "model.pth")
    net = seeded(Residual)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit"):
        load(tmp_path / "model.pth", net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any("ResQ" in type(module).__name__ for module in net.modules())


def test_what_holds_no_configuration_says_where_to_get_one(tmp_path: Path) -> None:
    torch.save(seeded(Plain).state_dict(), tmp_path / "float.pth")
    with pytest.raises(
        CheckpointError, match=r"holds no ranges and no configuration of them; write it with .*save_checkpoint"
    ):
        load(tmp_path / "float.pth", seeded(Plain))


def test_ranges_alone_and_a_converted_model_are_refused(tmp_path: Path) -> None:
    model = calibrated(CONFIG)
    save_ranges(model, tmp_path / "ranges.pth")
    net = seeded(Plain)
    with pytest.raises(CheckpointError, match=r"holds ranges only; read it with load_ranges"):
        load(tmp_path / "ranges.pth", net)
    assert type(net[0]) is nn.Conv2d
    save_checkpoint(model, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="already converted"):
        load(tmp_path / "model.pth", model)
