"""Subclasses of torch layers that their package, or somebody for it, declares to compute the same."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import assert_equal, build, play
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert, measure_cost, revert, summarize
from resq_plugin.backends import wrappers

LAYERS = '''
from torch import Tensor, nn

class Conv(nn.Conv2d):
    """Computes what it derives from."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

class Doubled(nn.Conv2d):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)

WRAPPERS = (Conv,)
'''


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An installed distribution with an entry point for its package ``wrapping_layers``."""
    (tmp_path / "wrapping_layers.py").write_text(LAYERS)
    metadata = tmp_path / "wrapping_layers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wrapping-layers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[{wrappers.GROUP}]\nwrapping_layers = wrapping_layers:WRAPPERS\nabsent = absent_module:WRAPPERS\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wrappers._wrappers.cache_clear()
    module = importlib.import_module("wrapping_layers")
    yield module
    monkeypatch.delitem(importlib.sys.modules, "wrapping_layers")  # type: ignore[attr-defined]
    wrappers._wrappers.cache_clear()


@pytest.fixture
def net(layers: ModuleType) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            layers.Conv(3, 4, 3), nn.BatchNorm2d(4), layers.Doubled(4, 4, 1), nn.Conv2d(4, 2, 1)
        ).eval()


def plain(net: nn.Module) -> nn.Module:
    """The same net with the torch layer in place of its wrapper."""
    twin = copy.deepcopy(net)
    twin[0].__class__ = nn.Conv2d
    return twin


def test_the_torch_class_of_a_class(layers: ModuleType) -> None:
    assert wrappers.torch_class(layers.Conv) is nn.Conv2d
    assert wrappers.torch_class(layers.Doubled) is layers.Doubled
    assert wrappers.torch_class(nn.Linear) is nn.Linear
    assert wrappers.torch_class(type("Own", (nn.Linear,), {})).__name__ == "Own"


def test_a_wrapper_is_converted_and_another_subclass_is_listed(net: nn.Module, frames: list[Tensor]) -> None:
    model = build(net, frames=frames)
    summary = summarize(model)
    assert summary.converted == ("0", "3")
    assert summary.unsupported == ("2 (Doubled)",)
    assert summary.folded == ("1",)
    assert_equal(play(model, frames), play(build(plain(net), frames=frames), frames))


def test_reverting_restores_the_very_class(net: nn.Module, layers: ModuleType, frames: list[Tensor]) -> None:
    with torch.no_grad():
        before = net(frames[0])
        attributes = set(vars(net[0]))
        model = revert(build(net, frames=frames))
        assert torch.equal(model(frames[0]), before)
    assert type(model[0]) is layers.Conv
    assert set(vars(model[0])) == attributes


def test_copies_and_pickles_of_a_converted_wrapper_can_be_reverted(net: nn.Module, frames: list[Tensor]) -> None:
    model = build(net, frames=frames)
    buffer = io.BytesIO(pickle.dumps(model))
    for twin in (copy.deepcopy(model), pickle.load(buffer)):
        assert_equal(play(twin, frames), play(model, frames))
        assert [type(layer) for layer in revert(twin)] == [type(layer) for layer in net]


def test_float_checkpoints_fit_both(net: nn.Module) -> None:
    model = convert(copy.deepcopy(net), "W8A8->W4A4")
    model.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(model[0].weight, net[0].weight)


def test_what_a_conversion_would_cost(net: nn.Module) -> None:
    """6 · 10 pixels: 4 · 27 and 2 · 4 MACs at 8 × 8 bits, 16 of what stays float at 32 × 32."""
    cost = measure_cost(net, (1, 3, 8, 12), ResQConfig.parse("W8A8->W4A4", interval=1))
    assert cost.bops_per_frame == 60 * ((108 + 8) * 64 + 16 * 1024)
    assert cost.float_layers == ("2",)


def test_packages_that_no_entry_names_stay_as_they_are(layers: ModuleType) -> None:
    assert wrappers._wrappers("helpers") == frozenset()
    assert wrappers._wrappers("wrapping_layers") == {layers.Conv}
