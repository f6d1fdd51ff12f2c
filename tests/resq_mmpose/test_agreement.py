"""Agreement of joints with the float model."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mmpose")

from mmengine.registry import METRICS, init_default_scope
from resq_mmengine import mmcv_lite

mmcv_lite.install()


def test_joints_count_when_they_are_within_a_share_of_the_box() -> None:
    init_default_scope("mmpose")
    metric = METRICS.build({"type": "resq_mmpose.JointAgreement", "thr": 0.05})
    expected = np.zeros((1, 4, 2))
    # The box is 100 × 200, so the limit is 10 pixels.
    found = np.array([[[0.0, 0.0], [10.0, 0.0], [6.0, 8.1], [0.0, -11.0]]])
    sample = {
        "pred_instances": {"keypoints": found},
        "float_prediction": {"pred_instances": {"keypoints": expected}},
        "gt_instances": {"bboxes": np.array([[50.0, 20.0, 150.0, 220.0]])},
    }
    metric.process(None, [sample, sample | {"pred_instances": {"keypoints": expected}}])

    # 2 of 4, then 4 of 4
    assert metric.evaluate(2) == {"agreement": pytest.approx(75.0)}
