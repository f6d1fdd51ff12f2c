"""However a weight is written, the next forward pass computes with it; within a stream nothing is made twice."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from helpers import Plain, assert_equal, build, outside, play, seeded, video
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

from resq_plugin import stream
from resq_plugin.backends.torch_layer import TorchResidualLayer
from resq_plugin.method import compare_numbers, residual_layers, settled_numbers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster


@pytest.fixture(params=["torch", "aimet", "brevitas"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def moved(tensor: Tensor) -> Tensor:
    """The same elements in another order."""
    return tensor.detach().flip(1).clone()


def by_numpy(net: nn.Module) -> None:
    array = net[3].weight.detach().numpy()
    array[:] = array[:, ::-1].copy()


def by_optimizer(net: nn.Module) -> None:
    net[3].weight.grad = torch.ones_like(net[3].weight)
    torch.optim.SGD([net[3].weight], lr=0.1).step()


def by_foreach(net: nn.Module) -> None:
    torch._foreach_mul_([net[3].weight.data, net[0].weight.data], 1.5)


def by_vector(net: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(net[3].parameters()).detach()
    nn.utils.vector_to_parameters(vector * 0.7, net[3].parameters())


def by_average(net: nn.Module) -> None:
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[3].weight.mul_(0)
    mean = AveragedModel(net)
    for model in (net, other):
        mean.update_parameters(model)
    for ours, theirs in zip(net.parameters(), mean.module.parameters(), strict=True):
        ours.data.copy_(theirs.data)


def by_statistics(net: nn.Module) -> None:
    net[1].running_mean.data.copy_(net[1].running_mean.data.flip(0).clone())


def by_replacing(net: nn.Module) -> None:
    net[3].weight = nn.Parameter(moved(net[3].weight))


def by_set(net: nn.Module) -> None:
    with torch.no_grad():
        net[3].weight.set_(moved(net[3].weight))


WRITERS: dict[str, Callable[[nn.Module], None]] = {
    "data.copy_": lambda net: net[3].weight.data.copy_(moved(net[3].weight)),
    "data =": lambda net: setattr(net[3].weight, "data", moved(net[3].weight)),
    "bias.data": lambda net: net[3].bias.data.copy_(net[3].bias.data.flip(0).clone()),
    "numpy": by_numpy,
    "optimizer": by_optimizer,
    "foreach": by_foreach,
    "vector": by_vector,
    "average": by_average,
    "statistics": by_statistics,
    "affine": lambda net: net[1].weight.data.copy_(net[1].weight.data.flip(0).clone()),
    "replaced": by_replacing,
    "set_": by_set,
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_written_weight_is_seen(writer: str, backend: str) -> None:
    """THEN the model computes what a copy of it, which has kept nothing, computes: in streams and outside."""
    frames = video(4)
    model = build(Plain, frames=frames, backend=backend)
    before, alone = play(model, frames), outside(model, frames)
    WRITERS[writer](model)
    fresh = copy.deepcopy(model)
    assert_equal(outside(model, frames), outside(fresh, frames))
    assert_equal(play(model, frames), play(fresh, frames))
    assert not torch.equal(outside(model, frames)[0], alone[0])
    assert not torch.equal(play(model, frames)[0], before[0])


@pytest.mark.parametrize("writer", list(WRITERS))
def test_the_version_of_the_numbers_changes_when_they_do(writer: str, backend: str) -> None:
    model = build(Plain, frames=video(3), backend=backend)
    layers = residual_layers(model)
    versions = {name: layer.numbers_version() for name, layer in layers.items()}
    outside(model, video(2))
    assert {name: layer.numbers_version() for name, layer in layers.items()} == versions
    WRITERS[writer](model)
    assert {name: layer.numbers_version() for name, layer in layers.items()} != versions


def test_ranges_belong_to_the_numbers(backend: str) -> None:
    model = build(Plain, frames=video(3), backend=backend)
    version = model[3].numbers_version()
    model[3].activation_quantizers()["residual.0"].set_range(-9.0, 9.0)
    assert model[3].numbers_version() != version


HOOKED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("hooked", list(HOOKED))
def test_weights_made_by_hooks_and_parametrizations_are_seen(hooked: str, backend: str) -> None:
    frames = video(4)
    model = build(Plain, frames=frames, backend=backend)
    HOOKED[hooked](model[3])
    play(model, frames)
    with torch.no_grad():
        for name, parameter in model[3].named_parameters():
            if "weight" in name and "quant" not in name and not name.startswith("residual_path"):
                parameter.data.copy_(parameter.data.flip(0).clone())
    found = play(model, frames)
    model[3].weight_of("keyframe")
    assert_equal(play(model, frames), found)
    assert_equal(outside(model, frames)[:1], found[:1])


# --- what it costs --------------------------------------------------------------------------------------------------


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    original = TorchResidualLayer.quantized_weight

    def quantized_weight(layer: TorchResidualLayer, kind: str) -> tuple[Tensor, Tensor | None]:
        made.append(kind)
        return original(layer, kind)

    monkeypatch.setattr(TorchResidualLayer, "quantized_weight", quantized_weight)
    return made


def test_a_stream_quantizes_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Plain, frames=video(3), interval=3)
    made = counting(monkeypatch)
    for _ in range(2):
        play(model, video(7))
    assert sorted(made) == ["keyframe"] * 3 + ["residual"] * 3
    model[3].weight.data.mul_(2)
    play(model, video(7))
    assert sorted(made) == ["keyframe"] * 4 + ["residual"] * 4
    outside(model, video(2))
    assert len(made) == 14  # nobody has looked at the weights, so they are made for each of two frames


def test_another_thread_does_not_take_what_nobody_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Plain, frames=video(3))
    expected, made = outside(model, video(1)), counting(monkeypatch)
    found: list[Tensor] = []
    with stream(model) as player, torch.no_grad():
        player(video(1)[0])
        with settled_numbers(residual_layers(model).values()):
            thread = threading.Thread(target=lambda: found.extend(outside(model, video(1))))
            thread.start()
            thread.join()
    assert made.count("keyframe") == 6
    assert_equal(found, expected)


def test_numbers_that_are_not_finite_are_like_themselves(backend: str) -> None:
    model = build(Plain, frames=video(3), backend=backend)
    model[5].weight.data[0, 0] = float("nan")
    version = model[5].numbers_version()
    assert model[5].numbers_version() == version
    model[5].weight.data[0, 0] = float("inf")
    assert model[5].numbers_version() != version


def test_copies_and_pickles_keep_nothing(backend: str) -> None:
    model = build(Plain, frames=video(3), backend=backend)
    play(model, video(2))
    assert model[0].kept.made
    copies = [copy.deepcopy(model)] + ([pickle.loads(pickle.dumps(model))] if backend == "torch" else [])
    for twin in copies:
        assert not twin[0].kept.made
        assert not twin[0].kept.tensors
        assert_equal(play(twin, video(3)), play(model, video(3)))


def test_copies_are_compared_by_value_shape_type_and_layout() -> None:
    model = build(seeded(Plain), frames=video(3))
    layer = model[3]
    compare_numbers([layer])
    kept = layer.kept
    compare_numbers([layer])
    assert layer.kept is kept
    model.to(memory_format=torch.channels_last)
    compare_numbers([layer])
    assert layer.kept is not kept
    kept = layer.kept
    model.double()
    compare_numbers([layer])
    assert layer.kept is not kept


@pytest.mark.filterwarnings("ignore::UserWarning")  # dynamo on AIMET's caches
def test_a_parametrization_is_no_constant_of_a_graph(backend: str) -> None:
    model = build(Plain, frames=video(3), backend=backend)
    parametrize.register_parametrization(model[3], "weight", nn.Tanh(), unsafe=True)
    expected = outside(model, video(2))
    assert_equal(outside(torch.compile(model, backend="eager"), video(2)), expected)
