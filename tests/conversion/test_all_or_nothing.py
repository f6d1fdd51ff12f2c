"""`convert` and `revert` do all or nothing, for every backend and whatever fails; what others added since stays."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Plain, assert_equal, build, max_lsb, outside, play, seeded, step_of, video
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from resq_plugin import ResQConfig, convert, dense_execution, float_state_dict, revert
from resq_plugin.backends import find_backend
from resq_plugin.errors import ConfigError, ConversionError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
X = video(3)


@pytest.fixture(params=["torch", "aimet", "brevitas"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Own(nn.Module):
    """Layers of several kinds, with hooks and training flags of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Plain()
        self.up, self.head = nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Linear(6, 5)

    def forward(self, frame: Tensor) -> Tensor:
        return self.head(self.up(self.body(frame)).mean((2, 3)))


def net() -> nn.Module:
    model = seeded(Own)
    model.up.train()
    model.body[3].register_forward_hook(lambda *_: None)
    model.body.register_state_dict_post_hook(lambda *_: None)
    return model


def facts(model: nn.Module) -> list[tuple[Any, ...]]:
    """Classes, attributes, containers by identity and content, and training flags of all modules."""
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        containers = {
            key: (id(v), sorted(map(str, v))) for key, v in vars(module).items() if isinstance(v, (dict, list, set))
        }
        values = {key: id(v) for key, v in vars(module).items() if key not in containers and not isinstance(v, bool)}
        found.append((name, type(module), containers, values, module.training))
    return found


class Interrupted(BaseException):
    """As Ctrl-C is one."""


@pytest.mark.parametrize("error", [KeyError("weight"), Interrupted()])
@pytest.mark.parametrize("at", range(5))
def test_a_layer_that_fails_leaves_the_model_as_it_was(
    at: int, error: BaseException, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, module = net(), find_backend(backend)
    attach, before, calls = module.attach, facts(model), []

    def fails(layer: nn.Module, layer_settings: Any) -> None:
        attach(layer, layer_settings)
        calls.append(layer)
        if len(calls) > at:
            raise error

    monkeypatch.setattr(module, "attach", fails)
    expected = outside(model, X)
    with pytest.raises(type(error)):
        convert(model, ResQConfig.parse("W8A8->W4A4", backend=backend))
    monkeypatch.undo()
    assert facts(model) == before
    assert_equal(outside(model, X), expected)
    convert(model, ResQConfig.parse("W8A8->W4A4", backend=backend), example=X[0])
    assert_equal(outside(revert(model), X), expected)


@pytest.mark.parametrize(
    ("config", "example"), [({}, torch.zeros(1, 7, 8, 8)), ({"overrides": {"nothing": "W8A8"}}, None)]
)
def test_a_frame_or_a_pattern_that_does_not_fit_leaves_the_model_as_it_was(
    config: dict[str, Any], example: Tensor | None, backend: str
) -> None:
    model = net()
    before = facts(model)
    with pytest.raises((RuntimeError, ConfigError)):
        convert(model, ResQConfig.parse("W8A8->W4A4", backend=backend, **config), example=example)
    assert facts(model) == before


@pytest.mark.parametrize("at", range(5))
def test_a_revert_that_fails_leaves_the_converted_model(
    at: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, module = build(net(), frames=X, backend=backend), find_backend(backend)
    detach, expected, calls = module.detach, play(model, X), []

    def fails(layer: nn.Module) -> None:
        detach(layer)
        calls.append(layer)
        if len(calls) > at:
            raise Interrupted

    before = facts(model)
    monkeypatch.setattr(module, "detach", fails)
    with pytest.raises(Interrupted):
        revert(model)
    monkeypatch.undo()
    assert facts(model) == before
    assert_equal(play(model, X), expected)


# --- hook-made weights and parametrizations -------------------------------------------------------------------------

HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}
PARAMETRIZED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer).eval(),
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", nn.Tanh(), unsafe=True),
    "two": lambda layer: [
        parametrize.register_parametrization(layer, name, nn.Tanh(), unsafe=True) for name in ("weight", "bias")
    ],
}
LAYERS = {"conv": lambda m: m.body[5], "transposed": lambda m: m.up, "linear": lambda m: m.head}


def apply_seeded(change: Callable[[nn.Module], object], layer: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        change(layer)


@pytest.mark.parametrize("hook", list(HOOKS))
@pytest.mark.parametrize("layer", list(LAYERS))
def test_weights_made_by_hooks_are_converted_or_refused_whole(layer: str, hook: str, backend: str) -> None:
    model = net()
    apply_seeded(HOOKS[hook], LAYERS[layer](model))
    model.eval()
    expected, before = outside(model, X), facts(model)
    if backend == "aimet":
        with pytest.raises(ConversionError, match=r"makes its weight in a hook.*prune\.remove.*exclude=\('"):
            convert(model, ResQConfig.parse("W8A8->W4A4", backend=backend))
        assert [fact[1:3] for fact in facts(model)] == [fact[1:3] for fact in before]
        assert_equal(outside(model, X), expected)
        return
    build(net(), frames=X, backend=backend)
    keys = list(model.state_dict())
    convert(model, ResQConfig.parse("W16A16->W16A16", backend=backend), example=X[0])
    assert list(float_state_dict(model)) == keys
    assert_equal(outside(revert(model), X), expected)


@pytest.mark.parametrize("change", [*HOOKS, *PARAMETRIZED])
@pytest.mark.parametrize("layer", list(LAYERS))
def test_what_is_registered_on_a_converted_layer_stays_when_it_is_reverted(
    layer: str, change: str, backend: str
) -> None:
    """THEN the layer has the class and the state of a float layer to which the same was done."""
    register = {**HOOKS, **PARAMETRIZED}[change]
    float_net, model = net(), build(net(), "W16A16->W16A16", X, backend=backend)
    for part in (float_net, model):
        apply_seeded(register, LAYERS[layer](part))
        part.eval()
    expected = outside(float_net, X)
    with dense_execution():  # the ranges are those of other weights
        for found, z in zip(outside(model, X), expected, strict=True):
            assert max_lsb(found, z, step_of(z)) < 0.2
    twin = copy.deepcopy(model) if change not in HOOKS or change == "prune" else model
    for reverted in {id(m): m for m in (twin, model)}.values():
        revert(reverted)
        found, original = LAYERS[layer](reverted), LAYERS[layer](float_net)
        assert [kind.__name__ for kind in type(found).__mro__] == [kind.__name__ for kind in type(original).__mro__]
        assert list(reverted.state_dict()) == list(float_net.state_dict())
        assert set(vars(found)) == set(vars(original))
        for frame, z in zip(X, expected, strict=True):
            with torch.no_grad():
                assert max_lsb(reverted(frame), z, step_of(z)) < 0.2
        reverted.load_state_dict(float_net.state_dict(), strict=True)


@pytest.mark.parametrize("change", list(PARAMETRIZED))
@pytest.mark.parametrize("first", ["remove", "revert"])
def test_parametrizations_are_removed_before_and_after_revert(change: str, first: str, backend: str) -> None:
    float_net, model = net(), build(net(), "W16A16->W16A16", X, backend=backend)
    for part in (float_net, model):
        apply_seeded(PARAMETRIZED[change], part.body[5])
        part.eval()
    expected = outside(float_net, X)

    def remove(part: nn.Module) -> None:
        for name in list(part.body[5].parametrizations):
            parametrize.remove_parametrizations(part.body[5], name)

    for step in (remove, revert) if first == "remove" else (revert, remove):
        step(model)
    assert type(model.body[5]) is nn.Conv2d
    remove(float_net)
    assert list(model.state_dict()) == list(float_net.state_dict())
    for found, z in zip(outside(model, X), expected, strict=True):
        assert max_lsb(found, z, step_of(z)) < 0.2
    pickle.loads(pickle.dumps(revert(build(seeded(Plain), frames=X, backend=backend))))


def test_another_class_altogether_is_an_error_that_changes_nothing(backend: str) -> None:
    model = build(seeded(Plain), frames=X, backend=backend)
    kind = type(model[5])
    swapped = model[5].__dict__["_swapped"]
    model[5].__class__ = type("Foreign", kind.__bases__, dict(vars(kind)))
    before = facts(model)
    with pytest.raises(ConversionError, match=rf"is a Foreign now, which is no {swapped.__name__}; undo what changed"):
        revert(model)
    assert facts(model) == before
    model[5].__class__ = kind
    revert(model)
    assert type(model[5]) is nn.Conv2d


@given(choices=st.lists(st.sampled_from(list(PARAMETRIZED)), min_size=1, max_size=3), seed=st.integers(0, 3))
@settings(max_examples=10)
@pytest.mark.parametrize("which", ["torch", "aimet", "brevitas"])
def test_any_parametrizations_survive_a_revert(which: str, choices: list[str], seed: int) -> None:
    float_net, model = seeded(Plain, seed), build(seeded(Plain, seed), "W16A16->W16A16", X, backend=which)
    for part in (float_net, model):
        for index, change in zip((3, 5, 0), choices, strict=False):
            if index or change not in ("two",):  # the first has no bias
                apply_seeded(PARAMETRIZED[change], part[index])
        part.eval()
    revert(model)
    for found, z in zip(outside(model, X), outside(float_net, X), strict=True):
        assert max_lsb(found, z, step_of(z)) < 0.2
