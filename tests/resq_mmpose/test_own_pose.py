"""Raw heat maps of a pose estimator, read as its predict mode reads them: what `resq search` measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmpose")

from resq_mmengine.own_model import OwnModel
from resq_mmengine.zoo import build_model

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = "mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_mobilenetv2_8xb64-210e_coco-256x192.py"


def test_raw_outputs_are_read_as_the_model_predicts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    (tmp_path / "frames").mkdir()
    for time in range(2):
        Image.fromarray(np.roll(noise, 5 * time, 1)).save(tmp_path / "frames" / f"{time}.png")
    state = build_model(CONFIG).state_dict()
    for name, value in state.items():  # as zoo models are made, all heat maps would be flat
        if name.endswith("weight") and value.dim() == 4:
            torch.nn.init.kaiming_normal_(value)
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "float.pth")
    own = OwnModel(CONFIG, tmp_path / "float.pth", [tmp_path / "frames"], boxes=[[10, 5, 100, 85]] * 2)
    with torch.no_grad():
        found, expected = (
            [read(model(frame)) for frame in own.frames[0]]
            for read, model in ((own.read, own.raw), (own.predict, own.model))
        )
    assert found[0].shape == (1, 17, 3)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(found[0], found[1])
