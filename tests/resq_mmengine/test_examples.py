"""The examples in the docstrings of the integrations."""

from __future__ import annotations

import doctest
import importlib

import pytest

pytest.importorskip("mmseg")


@pytest.mark.parametrize(
    "name",
    [
        *("resq_mmengine.clips", "resq_mmengine.options"),
        *("resq_mmpose.jhmdb", "resq_mmpose.pose_video", "resq_mmseg.video_file"),
    ],
)
def test_examples(name: str) -> None:
    failed, run = doctest.testmod(importlib.import_module(name))
    assert run > 0
    assert failed == 0
