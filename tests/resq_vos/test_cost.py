from __future__ import annotations

import functools

import pytest
import torch
from resq_vos.cost import DAVIS_2016_VAL, DAVIS_2017_VAL, TABLE3_UNCOUNTED, mean_over_videos, quantized_only, vos_cost
from resq_vos.stm import FLOAT_LAYERS, PUBLISHED, SMALL, STM
from vos_helpers import tiny_stm

from resq_plugin import ResQConfig
from resq_plugin.cost import Cost
from resq_plugin.errors import ConfigError

PADDED = (1, 3, 480, 854)


@pytest.fixture(scope="module")
def published() -> STM:
    with torch.device("meta"):
        return STM(PUBLISHED)


@pytest.mark.parametrize(
    ("precision", "interval", "single", "multi"), [("W8A8", 1, 10.07, 19.09), ("W8A8->W4A8", 3, 6.74, 12.78)]
)
def test_table_3(published: STM, precision: str, interval: int, single: float, multi: float) -> None:
    config = ResQConfig.parse(precision, interval=interval, exclude=FLOAT_LAYERS)

    @functools.cache
    def cost_of(width: int, objects: int) -> Cost:
        cost = vos_cost(published, (1, 3, 480, width), config, objects=objects)
        return quantized_only(cost, TABLE3_UNCOUNTED)

    assert mean_over_videos(cost_of, DAVIS_2016_VAL, interval) / 1e12 == pytest.approx(single, rel=0.002)
    assert mean_over_videos(cost_of, DAVIS_2017_VAL, interval) / 1e12 == pytest.approx(multi, rel=0.002)


def test_macs_by_hand(published: STM) -> None:
    rows = {row.name: row.macs / 1e9 for row in vos_cost(published, PADDED).by_module(1)}
    at_16 = 30 * 54  # positions of 480 × 864
    assert rows["query"] == pytest.approx(27.09, abs=0.005)
    assert rows["memory"] == pytest.approx(27.74, abs=0.005)
    for side in ("query", "memory"):
        assert rows[f"{side}_key"] == at_16 * 128 * 1024 * 9 / 1e9
        assert rows[f"{side}_value"] == at_16 * 512 * 1024 * 9 / 1e9
    blocks = 4 * 256 * 256 * 9
    assert rows["refine4"] == pytest.approx(16 * at_16 * (256 * 256 * 9 + blocks) / 1e9)
    assert rows["refine8"] == pytest.approx(4 * at_16 * (512 * 256 * 9 + blocks) / 1e9)
    assert rows["top"] == pytest.approx(at_16 * 1024 * 256 * 9 / 1e9)


def test_objects_cost_a_memory_encoder_and_a_decoder_each(published: STM) -> None:
    config = ResQConfig.parse("W8A8", exclude=FLOAT_LAYERS)
    gmacs = [quantized_only(vos_cost(published, PADDED, config, objects=n)).macs / 1e9 for n in (1, 2, 3)]
    assert gmacs == pytest.approx([160.06, 293.03, 426.00], abs=0.01)


def test_the_small_net_at_half_resolution() -> None:
    with torch.device("meta"):
        small = STM(SMALL)
    cost = quantized_only(vos_cost(small, (1, 3, 240, 427), ResQConfig.parse("W8A8", exclude=FLOAT_LAYERS)))
    assert cost.bops_per_frame / 1e9 == pytest.approx(373, abs=0.5)


def test_videos_of_davis() -> None:
    assert len(DAVIS_2016_VAL) == 20
    assert len(DAVIS_2017_VAL) == 30
    assert sum(video.objects for video in DAVIS_2017_VAL.values()) == 61
    assert sum(video.frames for video in DAVIS_2016_VAL.values()) == 1376
    assert sum(video.frames for video in DAVIS_2017_VAL.values()) == 1999


def test_keyframes_of_a_video_are_rounded_up() -> None:
    # 50 frames run the net 49 times: 17 keyframes of 64 and 32 residual frames of 32 bit operations per MAC.
    cost = vos_cost(tiny_stm(), (1, 3, 32, 32), ResQConfig.parse("W8A8->W4A8", interval=3, exclude=FLOAT_LAYERS))
    cost = quantized_only(cost)
    found = DAVIS_2016_VAL["blackswan"].mean_bops(cost, 3)
    assert found == pytest.approx(cost.macs * (17 * 64 + 32 * 32) / 49)


@pytest.mark.parametrize("objects", [0, -1, 1.5])
def test_objects_must_be_a_whole_number(objects: object) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        vos_cost(tiny_stm(), (1, 3, 32, 32), objects=objects)
