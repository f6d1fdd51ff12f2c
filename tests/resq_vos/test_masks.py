from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resq_vos.masks import aggregate, crop, labels_of, mask_planes, pad, resize_masks


@pytest.mark.parametrize(("width", "left", "right"), [(854, 5, 5), (427, 2, 3), (432, 0, 0), (1, 7, 8)])
def test_padding_is_symmetric(width: int, left: int, right: int) -> None:
    padded = pad(torch.ones(1, 3, 16, width))
    assert padded.shape == (1, 3, 16, left + width + right)
    assert not padded[..., :left].any()
    assert not padded[..., left + width :].any()
    assert padded[..., left : left + width].all()


@given(st.integers(1, 40), st.integers(1, 40))
def test_cropping_undoes_padding(height: int, width: int) -> None:
    x = torch.randn(2, height, width)
    padded = pad(x)
    assert padded.shape[-1] % 16 == padded.shape[-2] % 16 == 0
    assert torch.equal(crop(padded, (height, width)), x)


def test_planes_of_objects_of_two_videos() -> None:
    masks = torch.tensor([0.25, 0.5, 0.75, 0.5]).view(4, 1, 1)
    planes = mask_planes(masks, torch.tensor([0, 0, 0, 1]))
    assert planes[:, 0].flatten().tolist() == [0.25, 0.5, 0.75, 0.5]
    assert planes[:, 1].flatten().tolist() == [1.0, 1.0, 0.75, 0.0]


def test_aggregation_by_hand() -> None:
    # p = (.8, .4): background .2 · .6 = .12; the softmax of log-odds has the weights p / (1 - p).
    p = torch.tensor([0.8, 0.4])
    weights = torch.tensor([0.12 / 0.88, 4.0, 0.4 / 0.6])
    found = aggregate(torch.logit(p).view(2, 1, 1)).flatten()
    assert torch.allclose(found, (weights / weights.sum())[1:])


def test_one_object_keeps_its_probability() -> None:
    logits = torch.linspace(-6, 6, 25).view(1, 5, 5)
    odds = torch.sigmoid(logits) / torch.sigmoid(-logits)
    assert torch.allclose(aggregate(logits), odds / (odds + 1 / odds), atol=1e-6)


def test_videos_do_not_mix() -> None:
    logits = torch.randn(5, 4, 6)
    owners = torch.tensor([0, 1, 0, 1, 1])
    together = aggregate(logits, owners)
    assert torch.allclose(together[[0, 2]], aggregate(logits[[0, 2]]), atol=1e-6)
    assert torch.allclose(together[[1, 3, 4]], aggregate(logits[[1, 3, 4]]), atol=1e-6)
    assert not torch.allclose(together[[0, 2]], aggregate(logits)[[0, 2]], atol=1e-2)


def test_labels_take_the_likeliest() -> None:
    masks = torch.tensor([[[0.6, 0.1, 0.3]], [[0.3, 0.2, 0.35]]])
    assert labels_of(masks, [7, 2]).tolist() == [[7, 0, 0]]  # the background has .1, .7 and .35
    assert labels_of(masks[:0], []).tolist() == [[0, 0, 0]]


def test_masks_shrink_by_the_mean() -> None:
    masks = torch.tensor([[[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    assert resize_masks(masks, (1, 2)).tolist() == [[[0.25, 1.0]]]
    assert resize_masks(masks, (2, 4)) is masks
    assert resize_masks(masks, (4, 8)).shape == (1, 4, 8)
