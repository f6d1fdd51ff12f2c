from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from resq_vos.bank import Bank, TensorBank, read_memory
from resq_vos.stm import PUBLISHED, SMALL, STM, load_stm
from vos_helpers import TINY, shared, tiny_stm

from resq_plugin.errors import CheckpointError


def test_reading_by_hand() -> None:
    # One query pixel, two remembered ones, √C_k = 2: weights softmax((4, 0) / 2).
    query = torch.tensor([2.0, 0, 0, 0]).view(1, 4, 1, 1)
    keys = torch.tensor([[2.0, 0, 0, 0], [0, 5.0, 0, 0]]).T[None]
    values = torch.tensor([[[10.0, 20.0]]])
    weights = torch.softmax(torch.tensor([2.0, 0.0]), 0)
    assert read_memory(query, keys, values).item() == pytest.approx(float(weights @ torch.tensor([10.0, 20.0])))


def test_published_shape() -> None:
    with torch.device("meta"):
        model = STM(PUBLISHED)
    trunk = sum(p.numel() for p in model.query.parameters())
    assert trunk == 8_543_296  # ResNet-50 up to its third stage, without the classifier
    assert sum(p.numel() for p in model.memory.parameters()) == trunk + 2 * 64 * 49
    assert model.memory_key.weight.shape == (128, 1024, 3, 3)
    assert model.query_value.weight.shape == (512, 1024, 3, 3)
    assert model.top.weight.shape == (256, 1024, 3, 3)
    assert model.refine8.skip.weight.shape == (256, 512, 3, 3)
    assert model.refine4.skip.weight.shape == (256, 256, 3, 3)
    assert model.predict.weight.shape == (2, 256, 3, 3)


@pytest.mark.parametrize("size", [(32, 48), (30, 44)])
def test_steps_keep_the_frame_size(size: tuple[int, int]) -> None:
    model, frame = tiny_stm(), torch.rand(1, 3, *size)
    keys, values = model.memorize(frame, torch.rand(3, *size))
    assert keys.shape == (3, 8, 2, 3)
    assert values.shape == (3, 6, 2, 3)
    logits = model.segment(frame, TensorBank(keys.flatten(2), values.flatten(2)))
    assert logits.shape == (3, *size)


def test_the_features_are_those_of_a_resnet_written_plainly() -> None:
    model, frame = tiny_stm(), torch.rand(1, 3, 32, 32)
    trunk = model.query
    x = (frame - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = F.max_pool2d(trunk.stem_norm(F.conv2d(x, trunk.stem.weight, None, 2, 3)).relu(), 3, 2, 1)
    found = trunk(frame)
    for stage, feature in zip(trunk.stages, found, strict=True):
        block = stage[0]
        stride = 1 if stage is trunk.stages[0] else 2
        y = block.reduce_norm(F.conv2d(x, block.reduce.weight)).relu()
        y = block.spatial_norm(F.conv2d(y, block.spatial.weight, None, stride, 1)).relu()
        y = block.expand_norm(F.conv2d(y, block.expand.weight))
        x = (y + block.project_norm(F.conv2d(x, block.project.weight, None, stride))).relu()
        assert torch.allclose(feature, x, atol=1e-6)


def test_two_mask_planes_are_two_stems() -> None:
    model, frame, planes = tiny_stm(), torch.rand(1, 3, 32, 32), torch.rand(1, 2, 32, 32)
    stem = model.memory.mask_stem
    own, others = (F.conv2d(planes[:, i : i + 1], stem.weight[:, i : i + 1], None, 2, 3) for i in (0, 1))
    assert stem.bias is None
    assert torch.allclose(stem(planes), own + others, atol=1e-6)
    assert not torch.equal(model.memory(frame, planes)[0], model.memory(frame, planes.flip(1))[0])


def test_objects_and_videos_are_independent_rows() -> None:
    model = tiny_stm()
    frames, masks = torch.rand(2, 3, 32, 48), torch.rand(3, 32, 48)
    owners = torch.tensor([0, 1, 1])
    keys, values = model.memorize(frames, masks, owners)
    bank = Bank()
    bank.add("abc", keys, values, owners, keep=True)
    logits = model.segment(frames, bank)
    for row, owner in enumerate(owners.tolist()):
        rows = [r for r in range(3) if int(owners[r]) == owner]
        k, v = model.memorize(frames[owner : owner + 1], masks[rows])
        assert torch.allclose(k, keys[rows], atol=1e-5)
        alone = model.segment(frames[owner : owner + 1], TensorBank(k.flatten(2), v.flatten(2)))
        assert torch.allclose(alone[rows.index(row)], logits[row], atol=1e-5)


def test_banks_read_alike() -> None:
    keys, values, query = torch.randn(2, 8, 3, 5), torch.randn(2, 6, 3, 5), torch.randn(1, 8, 3, 5)
    bank = Bank()
    for keep in (True, False):
        bank.add("ab", keys if keep else keys.flip(0), values, keep=keep)
    stacked = bank.stacked()
    assert stacked.keys.shape == (2, 8, 30)
    assert torch.allclose(bank.read(query), stacked.read(query), atol=1e-6)
    assert bank.bytes() == 2 * 30 * (8 + 6) * 4


def test_the_frame_before_is_replaced_and_kept_frames_stay() -> None:
    bank = Bank()
    for number in range(6):
        entry = torch.full((1, 1, 1, 1), float(number))
        bank.add("a", entry, entry, keep=number % 5 == 0)
    memory = bank.memories["a"]
    assert [float(key) for key, _ in memory.entries()] == [0.0, 5.0]
    bank.add("a", entry + 1, entry, keep=False)
    assert [float(key) for key, _ in memory.entries()] == [0.0, 5.0, 6.0]


def test_a_copied_bank_changes_apart() -> None:
    bank, entry = Bank(), torch.zeros(1, 2, 1, 1)
    bank.add("a", entry, entry, keep=True)
    other = bank.copy()
    other.add("a", entry, entry, keep=True)
    other.remove("a")
    assert bank.objects == ["a"]
    assert len(bank.memories["a"].kept) == 1


def test_the_small_weights_load_strictly() -> None:
    model = load_stm(shared("weights/stm_small.pth"))
    assert not model.training
    assert 6.7e6 < sum(tensor.numel() for tensor in model.state_dict().values()) < 6.9e6


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(tiny_stm().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"other.pth is not of this STM"):
        load_stm(path)
    assert load_stm(path, TINY).config == TINY
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_stm(path)


def test_the_small_shape_has_no_batch_norm() -> None:
    with torch.device("meta"):
        names = STM(SMALL).state_dict()
    assert not [name for name in names if "norm" in name]
    assert "query.mean" in names
