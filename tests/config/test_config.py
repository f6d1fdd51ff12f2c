"""The notation, every setting, and every message that a wrong one gets."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_plugin.config import (
    CalibrationConfig,
    PolicyConfig,
    Precision,
    ResQConfig,
    ScheduleConfig,
    parse_precision,
)
from resq_plugin.errors import ConfigError, ResQError

WIDTHS = st.integers(2, 16)
POOLS = st.lists(st.sampled_from([0, *range(2, 17)]), min_size=1, max_size=5, unique=True).map(
    lambda pool: tuple(sorted(pool))
)
KEYFRAMES = st.builds(Precision, WIDTHS, WIDTHS)
RESIDUALS = st.builds(Precision, WIDTHS, st.one_of(st.just(0), WIDTHS, POOLS))
NOTATIONS = st.builds(lambda keyframe, residual: f"{keyframe}->{residual}", KEYFRAMES, RESIDUALS)
PATTERNS = st.text("abz.*?[]0", min_size=1, max_size=6)
CONFIGS = st.builds(
    ResQConfig,
    keyframe=KEYFRAMES,
    residual=st.none() | RESIDUALS,
    interval=st.integers(1, 1000),
    weights=st.sampled_from(["tensor", "channel"]),
    reference=st.sampled_from(["float", "quantized", "running"]),
    keyframe_grid=st.sampled_from(["symmetric", "unsigned"]),
    policy=st.builds(
        PolicyConfig,
        threshold=st.floats(0, 1e6),
        normalize=st.sampled_from(["layer", "none"]),
        granularity=st.sampled_from(["pixel", "region", "frame"]),
        region=st.integers(1, 64),
        thresholds=st.lists(st.tuples(PATTERNS, st.floats(0, 1e6)), max_size=3),
    ),
    calibration=st.builds(
        CalibrationConfig,
        samples=st.integers(1, 999),
        candidates=st.integers(2, 99),
        positions=st.integers(1, 9999),
        recheck=st.integers(0, 9),
    ),
    schedule=st.builds(
        ScheduleConfig,
        kind=st.sampled_from(["interval", "scene_change", "spread"]),
        threshold=st.none() | st.floats(1e-3, 10),
    ),
    include=st.lists(PATTERNS, max_size=3),
    exclude=st.lists(PATTERNS, max_size=3),
    overrides=st.lists(st.tuples(PATTERNS, NOTATIONS), max_size=4),
    on_change=st.sampled_from(["raise", "keyframe"]),
    compile=st.booleans(),
)


def message_of(**settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        ResQConfig.from_dict(settings)
    assert isinstance(caught.value, ResQError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


# --- notation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keyframe", "residual"),
    [
        ("W8A8->W4A4", Precision(8, 8), Precision(4, 4)),
        ("w8a8→w8a4", Precision(8, 8), Precision(8, 4)),
        ("  W4A8  ->\tW3A3 ", Precision(4, 8), Precision(3, 3)),
        ("W8A8->W4A{0,4,8}", Precision(8, 8), Precision(4, (0, 4, 8))),
        ("W8A8->W4A[ 4 , 8 ]", Precision(8, 8), Precision(4, (4, 8))),
        ("W16A16->W16A{16}", Precision(16, 16), Precision(16, (16,))),
        ("W2A2->W2A0", Precision(2, 2), Precision(2, 0)),
        ("W8A8", Precision(8, 8), None),
    ],
)
def test_the_papers_notation_is_read(text: str, keyframe: Precision, residual: Precision | None) -> None:
    assert parse_precision(text) == (keyframe, residual)


@given(keyframe=KEYFRAMES, residual=st.none() | RESIDUALS, arrow=st.sampled_from(["->", " → ", " -> ", "→"]))
def test_notation_round_trip(keyframe: Precision, residual: Precision | None, arrow: str) -> None:
    text = str(keyframe) if residual is None else f"{keyframe}{arrow}{residual}"
    assert parse_precision(text) == (keyframe, residual)
    config = ResQConfig.parse(text)
    assert parse_precision(config.notation) == (keyframe, residual)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "W8",
        "A8W8",
        "W8A8->",
        "->W4A4",
        "W8A8->W4A4->W2A2",
        "W8A8-W4A4",
        "W8A8->W4A{}",
        "W-8A8",
        "W8.0A8",
        8,
        None,
    ],
)
def test_unreadable_notation_shows_how_to_write_it(text: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_precision(text)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"cannot read the precision {text!r}; write keyframe->residual such as 'W8A8->W4A4', with a pool "
        "'W8A8->W4A{0,4,8}', or 'W8A8' for plain frame quantization."
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("W1A8", "the weight has 1 bits; allowed are 2 to 16"),
        ("W0A8", "the weight has 0 bits; allowed are 2 to 16"),
        ("W8A17", "the activation has 17 bits; allowed are 0 or 2 to 16"),
        ("W8A1", "the activation has 1 bits; allowed are 0 or 2 to 16"),
        ("W8A8->W17A4", "the weight has 17 bits"),
        ("W8A8->W4A{0,1,8}", "the activation has 1 bits"),
    ],
)
def test_impossible_bit_widths(text: str, what: str) -> None:
    message = message_of(precision=text)
    assert message.startswith(what)
    assert message.endswith("e.g. 'W8A8->W4A4' or 'W8A8->W4A{0,4,8}'.")


@pytest.mark.parametrize("bits", [True, 4.0, "4", None])
def test_bit_widths_are_whole_numbers(bits: object) -> None:
    with pytest.raises(ConfigError, match=r"the weight has .* bits; allowed are 2 to 16"):
        Precision(bits, 8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"the activation has .* bits; allowed are 0 or 2 to 16"):
        Precision(8, (0, bits))  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", [(8, 4), (4, 4), ()])
def test_a_pool_goes_from_low_to_high(pool: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        Precision(4, pool)
    assert str(caught.value) == (
        f"the pool {pool} must name different bit widths from low to high (§4.2), e.g. 'W4A{{0,4,8}}'."
    )


@pytest.mark.parametrize("text", ["W8A{4,8}->W4A4", "W8A0->W4A4", "W8A0"])
def test_a_keyframe_has_one_bit_width(text: str) -> None:
    assert message_of(precision=text).endswith("needs one bit width of at least 2, e.g. 'W8A8->W4A{0,4,8}'.")


def test_pools_of_precision() -> None:
    assert (Precision(4, 8).pool, Precision(4, 8).is_dynamic) == ((8,), False)
    assert (Precision(4, [0, 8]).pool, Precision(4, [0, 8]).is_dynamic) == ((0, 8), True)  # type: ignore[arg-type]
    assert str(Precision(4, (0, 8))) == "W4A{0,8}"


# --- configuration --------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    config = ResQConfig()
    assert str(config) == "W8A8->W4A4 (T=3)"
    assert (config.weights, config.reference, config.keyframe_grid) == ("tensor", "float", "symmetric")
    assert (config.calibration.samples, config.calibration.candidates) == (64, 20)
    assert (config.policy.granularity, config.schedule.kind) == ("pixel", "interval")
    assert str(ResQConfig.parse("W8A4")) == "W8A4"


@given(config=CONFIGS)
def test_configuration_round_trip_through_json(config: ResQConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    assert ResQConfig.from_dict(values) == config
    assert hash(ResQConfig.from_dict(values)) == hash(config)
    assert config.replace() == config


@given(config=CONFIGS, interval=st.integers(1, 99), precision=NOTATIONS, name=PATTERNS)
def test_replace_changes_what_is_named_and_nothing_else(
    config: ResQConfig, interval: int, precision: str, name: str
) -> None:
    changed = config.replace(precision=precision, interval=interval)
    assert (changed.notation, changed.interval) == (precision, interval)
    assert changed.replace(keyframe=config.keyframe, residual=config.residual, interval=config.interval) == config
    assert changed.precision_of(name) == changed.replace(interval=1).precision_of(name)


def test_replace_of_one_side_keeps_the_other() -> None:
    config = ResQConfig.parse("W8A8->W4A4")
    assert config.replace(keyframe=Precision(4, 8)).notation == "W4A8->W4A4"
    assert config.replace(residual=None).notation == "W8A8"


def test_configurations_are_frozen_values() -> None:
    config = ResQConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.interval = 5  # type: ignore[misc]
    assert len({config, ResQConfig(), ResQConfig(interval=2)}) == 2


def test_sections_may_be_dicts_or_objects() -> None:
    by_dict = ResQConfig.parse("W8A8->W4A4", policy={"threshold": 0.3}, calibration={"samples": 8})
    by_object = ResQConfig.parse("W8A8->W4A4", policy=PolicyConfig(0.3), calibration=CalibrationConfig(samples=8))
    assert by_dict == by_object


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"intervall": 3}, "unknown setting intervall. Did you mean 'interval'? Allowed are "),
        ({"key_frame_grid": "unsigned"}, "unknown setting key_frame_grid. Did you mean 'keyframe_grid'? Allowed are "),
        ({"zzz": 1}, "unknown setting zzz. Allowed are "),
        ({"policy": {"treshold": 0.1}}, "unknown setting policy.treshold. Did you mean 'threshold'? Allowed are "),
        ({"calibration": {"sample": 1}}, "unknown setting calibration.sample. Did you mean 'samples'? Allowed are "),
        ({"schedule": {"type": "interval"}}, "unknown setting schedule.type. Allowed are kind, threshold."),
    ],
)
def test_unknown_settings_name_the_nearest_and_all_allowed(settings: dict, expected: str) -> None:
    assert message_of(**settings).startswith(expected)


def test_unknown_settings_list_precision_not_its_parts() -> None:
    allowed = message_of(zzz=1).split("Allowed are ")[1]
    assert "precision" in allowed
    assert "residual" not in allowed


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"interval": 0}, "interval=0 is not allowed; write a whole number of at least 1."),
        ({"interval": 2.0}, "interval=2.0 is not allowed; write a whole number of at least 1."),
        ({"interval": True}, "interval=True is not allowed; write a whole number of at least 1."),
        ({"interval": "3"}, "interval='3' is not allowed; write a whole number of at least 1."),
        (
            {"weights": "chanel"},
            "weights='chanel' is not allowed; write one of 'tensor', 'channel'. Did you mean 'channel'?",
        ),
        (
            {"reference": "quantised"},
            "reference='quantised' is not allowed; write one of 'float', 'quantized', 'running'. "
            "Did you mean 'quantized'?",
        ),
        ({"keyframe_grid": None}, "keyframe_grid=None is not allowed; write one of 'symmetric', 'unsigned'."),
        ({"on_change": "ignore"}, "on_change='ignore' is not allowed; write one of 'raise', 'keyframe'."),
        ({"policy": {"normalize": "max"}}, "policy.normalize='max' is not allowed; write one of 'layer', 'none'."),
        (
            {"policy": {"granularity": "pixels"}},
            "policy.granularity='pixels' is not allowed; write one of 'pixel', 'region', 'frame'. "
            "Did you mean 'pixel'?",
        ),
        ({"policy": {"region": 0}}, "policy.region=0 is not allowed; write a whole number of at least 1."),
        (
            {"policy": {"threshold": -0.1}},
            "policy.threshold=-0.1 is not allowed; write a number of at least 0, e.g. 0.1.",
        ),
        (
            {"policy": {"threshold": float("nan")}},
            "policy.threshold=nan is not allowed; write a number of at least 0, e.g. 0.1.",
        ),
        (
            {"policy": {"threshold": "1"}},
            "policy.threshold='1' is not allowed; write a number of at least 0, e.g. 0.1.",
        ),
        (
            {"policy": 0.1},
            "policy=0.1 must be a dict with some of granularity, normalize, region, threshold, thresholds.",
        ),
        ({"calibration": {"samples": 0}}, "calibration.samples=0 is not allowed; write a whole number of at least 1."),
        (
            {"calibration": {"candidates": 1}},
            "calibration.candidates=1 is not allowed; write a whole number of at least 2.",
        ),
        (
            {"calibration": {"positions": 0}},
            "calibration.positions=0 is not allowed; write a whole number of at least 1.",
        ),
        (
            {"calibration": {"recheck": -1}},
            "calibration.recheck=-1 is not allowed; write a whole number of at least 0.",
        ),
        (
            {"schedule": {"kind": "scene"}},
            "schedule.kind='scene' is not allowed; write one of 'interval', 'scene_change', 'spread'. "
            "Did you mean 'scene_change'?",
        ),
        (
            {"schedule": {"threshold": 0}},
            "schedule.threshold=0 is not allowed; write a number above 0, or None to calibrate it.",
        ),
        ({"include": "*"}, "include='*' must be a list of patterns, e.g. include=('auxiliary_head.*',)."),
        ({"include": 5}, "include=5 must be a list of patterns, e.g. include=('auxiliary_head.*',)."),
        ({"exclude": [1]}, "exclude=[1] must be a list of patterns, e.g. exclude=('auxiliary_head.*',)."),
        (
            {"overrides": {"head.*": "W8"}},
            "cannot read the precision 'W8'; write keyframe->residual such as 'W8A8->W4A4', with a pool "
            "'W8A8->W4A{0,4,8}', or 'W8A8' for plain frame quantization.",
        ),
        (
            {"overrides": ["head.*"]},
            "overrides=['head.*'] must be patterns with a notation, e.g. overrides={'head.*': 'W8A8->W8A8'}.",
        ),
        (
            {"overrides": "head.*"},
            "overrides='head.*' must be patterns with a notation, e.g. overrides={'head.*': 'W8A8->W8A8'}.",
        ),
        (
            {"overrides": {"head.*": 8}},
            "overrides={'head.*': 8} must be patterns with a notation, e.g. overrides={'head.*': 'W8A8->W8A8'}.",
        ),
        ({"version": 2}, "version=2 of the configuration is unknown; this release reads version 1."),
        (
            {"keyframe": "W8A8"},
            "keyframe='W8A8' must be a Precision; write the paper's notation, e.g. precision='W8A8->W4A4'.",
        ),
        (
            {"residual": 4},
            "residual=4 must be a Precision; write the paper's notation, e.g. precision='W8A8->W4A4'.",
        ),
        (
            {"precision": "W8A8->W4A4", "residual": Precision(4, 4)},
            "precision='W8A8->W4A4' says residual already; write one of the two.",
        ),
        (
            {"keyframe": Precision(8, (4, 8))},
            "keyframe=W8A{4,8} needs one activation bit width of at least 2, e.g. W8A8.",
        ),
    ],
    ids=lambda value: json.dumps(value, default=str)[:40] if isinstance(value, dict) else "",
)
def test_every_error_names_key_value_and_remedy(settings: dict, expected: str) -> None:
    assert message_of(**settings) == expected


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "exclude", "selected"),
    [
        (("*",), (), ["stem", "head.0", "head.1", "aux.conv"]),
        (("*",), ("head.*",), ["stem", "aux.conv"]),
        (("head.*", "aux.*"), ("*.conv",), ["head.0", "head.1"]),
        (("stem", "head.[1-9]"), (), ["stem", "head.1"]),
        ((), (), []),
        (("HEAD.*",), (), []),  # patterns are case-sensitive
    ],
)
def test_include_and_exclude(include: tuple[str, ...], exclude: tuple[str, ...], selected: list[str]) -> None:
    config = ResQConfig(include=include, exclude=exclude)
    assert [name for name in ("stem", "head.0", "head.1", "aux.conv") if config.selects(name)] == selected


def test_the_last_override_wins() -> None:
    config = ResQConfig.parse(
        "W8A8->W4A4", overrides={"head.*": "W8A8->W8A8", "head.1": "W16A16->W8A{4,8}", "stem": "W4A8"}
    )
    assert config.precision_of("body") == (Precision(8, 8), Precision(4, 4))
    assert config.precision_of("head.0") == (Precision(8, 8), Precision(8, 8))
    assert config.precision_of("head.1") == (Precision(16, 16), Precision(8, (4, 8)))
    assert config.precision_of("stem") == (Precision(4, 8), Precision(4, 8))  # one side means both


def test_a_repeated_pattern_counts_where_it_stands_last() -> None:
    config = ResQConfig(overrides=[("a", "W2A2"), ("*", "W4A4"), ("a", "W8A8")])  # type: ignore[arg-type]
    assert config.overrides == (("*", "W4A4"), ("a", "W8A8"))
    assert config.precision_of("a")[0] == Precision(8, 8)


def test_overrides_add_no_residual_to_frame_quantization() -> None:
    config = ResQConfig.parse("W8A8", overrides={"head": "W4A4->W2A2"})
    assert config.precision_of("head") == (Precision(4, 4), None)
