"""Training clips from stills in a mm config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from resq_mmengine.sampler import ClipSampler, IntervalBatchSampler
from tiny_video import dataset, make_frames

from resq_plugin.training import Camera, film

pytestmark = pytest.mark.filterwarnings("ignore")

PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "resq_mmseg.RandomCamera", "size": (24, 32), "shift": 3.0},
    {"type": "PackSegInputs"},
]


@pytest.fixture
def stills(tmp_path: Path) -> object:
    init_default_scope("mmseg")
    make_frames(tmp_path, "train", 3)
    return DATASETS.build(dataset(tmp_path, "train", still_frames=3, pipeline=PIPELINE))


def test_every_picture_is_a_clip_that_moves_smoothly(stills: object) -> None:
    sampler = ClipSampler(stills, shuffle=True, seed=4)
    sampler.configure(3)
    batches = list(IntervalBatchSampler(sampler, 1))
    assert len(batches) == 3
    for batch in batches:
        samples = [stills[index] for index in batch]
        assert [sample["data_samples"].metainfo["frame_index"] for sample in samples] == [0, 1, 2]
        assert len({sample["data_samples"].metainfo["clip_id"] for sample in samples}) == 1
        images = torch.stack([sample["inputs"].float() for sample in samples])
        assert images.shape == (3, 3, 24, 32)
        unlike = torch.stack([stills[other]["inputs"].float() for other in range(0, 9, 3)])
        near = (images[1:] - images[:-1]).abs().mean()
        assert 0 < float(near) < float((unlike - images[0]).abs().mean(dim=(1, 2, 3)).max())
        labels = samples[0]["data_samples"].gt_sem_seg.data
        assert set(labels.unique().tolist()) <= {0, 8, 255}


def test_it_is_the_camera_of_the_core() -> None:
    init_default_scope("mmseg")
    transform = TRANSFORMS.build(PIPELINE[2] | {"noise": 0.0})
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    label = np.random.default_rng(1).integers(0, 11, (40, 50)).astype(np.uint8)
    camera = Camera(size=(24, 32), shift=3.0, noise=0.0)
    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()))
    tensors = torch.from_numpy(image).permute(2, 0, 1).float(), torch.from_numpy(label).long()
    frames, labels = film(*tensors, 3, camera, torch.Generator().manual_seed(seed))
    for position in range(3):
        torch.manual_seed(5)
        found = transform({"img": image, "gt_seg_map": label, "frame_index": position})
        expected = frames[position].round().clamp(0, 255).permute(1, 2, 0).numpy()
        assert np.array_equal(found["img"], expected.astype(np.uint8))
        assert np.array_equal(found["gt_seg_map"], labels[position].numpy())
        assert found["gt_seg_map"].dtype == np.uint8
