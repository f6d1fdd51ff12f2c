"""Metrics against values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from resq_plugin.errors import ConfigError
from resq_plugin.evaluation.metrics import PCK, Agreement, MeanIoU

NAN = float("nan")


def measure(metric: Any, *pairs: tuple[Any, Any]) -> float:
    for prediction, target in pairs:
        metric.update(torch.as_tensor(prediction), torch.as_tensor(target))
    value = metric.compute()
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([([[0, 0, 1, 1]], [[0, 0, 1, 1]])], 100.0, id="all right"),
        # class 0: 1 of 3; class 1: 1 of 2; class 2: 1 of 2
        pytest.param([([[0, 0, 1, 2, 0]], [[0, 1, 1, 2, 2]])], 100 * (1 / 3 + 1 / 2 + 1 / 2) / 3, id="by hand"),
        # 255 and -1 are ignored whatever is predicted there
        pytest.param([([[0, 2, 1, 0]], [[0, 255, 1, -1]])], 100.0, id="ignored labels"),
        pytest.param([([[0, 0, 0, 0]], [[0, 0, 0, 0]])], 100.0, id="absent classes do not count"),
        # class 1 occurs in predictions only: its IoU is 0
        pytest.param([([[0, 0, 0, 1]], [[0, 0, 0, 0]])], 100 * (3 / 4 + 0) / 2, id="wrongly predicted class counts"),
        # counted over both frames: class 0: 2 of 4, class 1: 2 of 4 (the mean of the two frames would be a third)
        pytest.param(
            [([[0, 0, 0]], [[0, 0, 1]]), ([[1, 1, 1]], [[1, 1, 0]])], 100 * (2 / 4 + 2 / 4) / 2, id="over all frames"
        ),
        pytest.param([([[0]], [[255]])], NAN, id="nothing labelled"),
        pytest.param([], NAN, id="nothing seen"),
    ],
)
def test_mean_iou_by_hand(pairs: list[Any], expected: float) -> None:
    assert measure(MeanIoU(3), *pairs) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_mean_iou_takes_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    prediction, target = torch.tensor([[0, 1, 18]], dtype=dtype), torch.tensor([[0, 18, 18]], dtype=dtype)
    assert measure(MeanIoU(19), (prediction, target)) == pytest.approx(100 * (1 + 0 + 1 / 2) / 3)


@pytest.mark.parametrize("wrong", [3, 7, -1])
def test_mean_iou_refuses_predictions_that_are_no_class(wrong: int) -> None:
    metric = MeanIoU(3)
    with pytest.raises(ConfigError, match=rf"MeanIoU\(3\) got predictions of class {wrong}; classes count from 0"):
        measure(metric, ([[0, wrong]], [[0, 0]]))
    assert int(metric.confusion.sum()) == 0


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([([1, 2, 3, 4], [1, 2, 3, 5])], 75.0, id="three of four"),
        pytest.param([([1], [1]), ([1, 2, 3], [3, 2, 1])], 50.0, id="over all frames"),
        pytest.param([([NAN], [NAN])], 0.0, id="NaN agrees with nothing"),
        pytest.param([], NAN, id="nothing seen"),
    ],
)
def test_agreement_by_hand(pairs: list[Any], expected: float) -> None:
    assert measure(Agreement(), *pairs) == pytest.approx(expected, nan_ok=True)


# A person of size 10: with alpha = 0.2 a keypoint may be 2 pixels off.
TRUTH = [[[10.0, 10.0, 10.0], [20.0, 20.0, 10.0], [30.0, 30.0, 10.0], [40.0, 40.0, 10.0]]]
FOUND = [[[10.0, 12.0], [20.0, 22.1], [31.0, 31.0], [45.0, 40.0]]]


@pytest.mark.parametrize(
    ("changes", "alpha", "expected"),
    [
        pytest.param({}, 0.2, 50.0, id="2.0 is right, 2.1 is wrong"),
        pytest.param({}, 0.5, 100.0, id="alpha"),
        pytest.param({(0, 3, 0): NAN}, 0.2, 100 * 2 / 3, id="a wrong one is not labelled"),
        pytest.param({(0, 2, 1): NAN}, 0.2, 100 / 3, id="a right one is not labelled"),
        pytest.param({(0, 0, 2): NAN}, 0.2, 100 / 3, id="no reference size"),
        pytest.param({(0, 1, 2): 11.0}, 0.2, 75.0, id="a larger person"),
    ],
)
def test_pck_by_hand(changes: dict[tuple[int, ...], float], alpha: float, expected: float) -> None:
    truth = torch.tensor(TRUTH)
    for index, value in changes.items():
        truth[index] = value
    assert measure(PCK(alpha), (FOUND, truth)) == pytest.approx(expected)


def test_pck_counts_keypoints_over_all_frames() -> None:
    nothing = torch.full((1, 4, 3), NAN)
    assert measure(PCK(), (FOUND, TRUTH), (FOUND, nothing), (torch.tensor(TRUTH)[..., :2], TRUTH)) == 75.0
    assert math.isnan(measure(PCK(), (FOUND, nothing)))


def test_pck_of_a_prediction_that_is_nan_is_wrong() -> None:
    assert measure(PCK(), (torch.full((1, 4, 2), NAN), TRUTH)) == 0.0


@pytest.mark.parametrize(
    ("metric", "prediction", "target", "message"),
    [
        pytest.param(
            MeanIoU(2), (1, 4, 4), (1, 2, 2), r"\(1, 4, 4\) where its target needs \(1, 2, 2\)", id="MeanIoU"
        ),
        pytest.param(MeanIoU(2), (1, 2, 2), (2, 2), r"\(1, 2, 2\) where its target needs \(2, 2\)", id="dimensions"),
        pytest.param(Agreement(), (2, 4), (1, 4), r"\(2, 4\) where its target needs \(1, 4\)", id="Agreement"),
        pytest.param(PCK(), (1, 4, 2), (1, 5, 3), r"\(1, 4, 2\) where its target needs \(1, 5, 2\)", id="PCK"),
        pytest.param(PCK(), (1, 5, 3), (1, 5, 3), r"\(1, 5, 3\) where its target needs \(1, 5, 2\)", id="PCK, scores"),
    ],
)
def test_predictions_of_another_shape_are_refused_and_never_broadcast(
    metric: Any, prediction: tuple[int, ...], target: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        metric.update(torch.zeros(prediction), torch.zeros(target))
