"""The drop-in `QuantizationSimModel`: ResQ as a scheme of AIMET's own configuration file, and AIMET without it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import aimet_torch
import pytest
import resq_aimet
import torch
from aimet_flow import AIMETS_OWN_WARNINGS
from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
from helpers import assert_equal, play
from torch import Tensor

from resq_plugin.errors import ConfigError
from resq_plugin.method.layers import residual_layers

pytestmark = AIMETS_OWN_WARNINGS

DropIn = resq_aimet.QuantizationSimModel


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes AIMET's default configuration with a ResQ section."""

    def make(**section: object) -> str:
        values = json.loads(Path(get_path_for_per_channel_config()).read_text())
        (tmp_path / "config.json").write_text(json.dumps({**values, "resq": section}))
        return str(tmp_path / "config.json")

    return make


@pytest.mark.parametrize(
    "options", [{}, {"config_file": "htp_v75", "default_param_bw": 4}, {"quant_scheme": "tf_enhanced"}]
)
def test_without_scheme_and_section_it_is_aimet_bit_for_bit(
    options: dict, make_sim: Callable, outputs: Callable, run_frames: Callable
) -> None:
    sims = make_sim(**options), make_sim(DropIn, **options)
    for sim in sims:
        sim.compute_encodings(run_frames)
    plain, found = sims
    assert found.resq is None
    assert [type(m) for m in found.model.modules()] == [type(m) for m in plain.model.modules()]
    assert_equal(outputs(found.model), outputs(plain.model))
    state, expected = found.model.state_dict(), plain.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items() if isinstance(value, Tensor))


def test_the_section_switches_resq_on(
    make_sim: Callable, config_file: Callable, clips: list[list[Tensor]], frames: list[Tensor]
) -> None:
    path = config_file(precision="W8A8->W4A{0,4,8}", interval=5, policy={"threshold": 0.2})
    before = Path(path).read_text()
    sim, expected = make_sim(DropIn, config_file=path), make_sim()
    resq = resq_aimet.convert(expected, sim.resq.sim.model.conv1.settings.config)
    assert Path(path).read_text() == before
    config = residual_layers(sim.model)["conv1"].settings.config
    assert (config.notation, config.interval, config.policy.threshold) == ("W8A8->W4A{0,4,8}", 5, 0.2)
    for one in (sim.resq, resq):
        one.compute_encodings(clips)
    assert_equal(play(sim.model, frames), play(expected.model, frames))


def test_the_rest_of_the_file_still_configures_aimet(make_sim: Callable, config_file: Callable) -> None:
    path = config_file(placement="hardware", precision="W8A8->W4A4")
    values = json.loads(Path(path).read_text())
    values["model_input"] = {}
    Path(path).write_text(json.dumps(values))
    sim = make_sim(DropIn, config_file=path)
    assert sim.resq.placement == "hardware"
    assert sim.model.conv1.input_quantizers[0] is None
    assert sim.model.relu1.output_quantizers[0] is not None


def test_the_scheme_alone_takes_the_default_configuration(make_sim: Callable) -> None:
    sim = make_sim(DropIn, quant_scheme="resq")
    assert str(residual_layers(sim.model)["head"].settings.config) == "W8A8->W4A4 (T=3)"


def test_a_converted_sim_can_be_pickled(make_sim: Callable, clips: list[list[Tensor]], frames: list[Tensor]) -> None:
    sim = make_sim(DropIn, quant_scheme="resq")
    sim.resq.compute_encodings(clips)
    twin = pickle.loads(pickle.dumps(sim))
    assert twin.resq.sim is twin
    assert_equal(play(twin.model, frames), play(sim.model, frames))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"precison": "W8A8->W4A4"}, r"unknown setting precison\. Did you mean 'precision'"),
        ({"precision": "W8A8->W4A99"}, "99"),
        ({"placement": "hard"}, "placement='hard' is not allowed"),
    ],
)
def test_the_section_is_checked_with_the_care_of_any_configuration(
    section: dict, message: str, make_sim: Callable, config_file: Callable
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sim(DropIn, config_file=config_file(**section))


def test_a_section_that_is_no_object_shows_one(make_sim: Callable, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"resq": "W8A8->W4A4"}))
    with pytest.raises(ConfigError, match=r"config\.json: \"resq\" is 'W8A8->W4A4'; write an object"):
        make_sim(DropIn, config_file=str(tmp_path / "config.json"))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_what_aimet_refuses_to_read_it_refuses_itself(text: str, make_sim: Callable, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    errors = []
    for cls in (aimet_torch.QuantizationSimModel, DropIn):
        with pytest.raises(Exception) as raised:  # noqa: PT011  # AIMET's own, whatever it is
            make_sim(cls, config_file=str(path))
        errors.append(type(raised.value))
    assert errors[0] is errors[1]
