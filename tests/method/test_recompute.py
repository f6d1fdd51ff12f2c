"""Activation checkpointing in a stream: gradients are those without it, whenever and however they are asked for."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from helpers import build, video
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from resq_plugin import stream
from resq_plugin.errors import StreamError

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"
KINDS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
PRECISIONS = pytest.mark.parametrize("precision", [STATIC, DYNAMIC], ids=["static", "dynamic"])


class Net(nn.Module):
    """A stem, a block of several layers one of which is used twice, and a head; ``how`` runs the block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.first, self.again = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.0)
        self.how: Callable[[Net, Tensor], Tensor] = plain

    def block(self, x: Tensor) -> Tensor:
        return self.part(self.first(x).relu_())

    def part(self, x: Tensor) -> Tensor:
        return self.again(x).relu() + self.again(self.drop(x.flip(-1))).relu_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self, self.again(self.stem(x).relu_()).relu_()))


def plain(net: Net, x: Tensor) -> Tensor:
    return net.block(x)


def once(reentrant: bool) -> Callable[[Net, Tensor], Tensor]:
    return lambda net, x: checkpoint(net.block, x, use_reentrant=reentrant)


def nested(outer: bool, inner: bool) -> Callable[[Net, Tensor], Tensor]:
    def inside(net: Net, x: Tensor) -> Tensor:
        return checkpoint(net.part, net.first(x).relu_(), use_reentrant=inner)

    return lambda net, x: checkpoint(inside, net, x, use_reentrant=outer)


def in_a_row(reentrant: bool) -> Callable[[Net, Tensor], Tensor]:
    return lambda net, x: checkpoint_sequential([net.first, nn.ReLU(), net.part], 3, x, use_reentrant=reentrant)


def net_of(precision: str, reference: str) -> nn.Module:
    model = build(Net, precision, reference=reference, interval=3, policy={"threshold": 0.02})
    return model.double().train()


def clip() -> list[Tensor]:
    return [frame.double() for frame in video(3)]


def weighted(outputs: list[Tensor]) -> Tensor:
    return sum((t + 1) * z.square().mean() for t, z in enumerate(outputs))


def gradients(model: nn.Module, how: Callable[..., Tensor], chosen: tuple[int, ...] = (0, 1, 2)) -> dict[str, Tensor]:
    """Of a loss of the frames in ``chosen``."""
    model.how = how
    model.zero_grad()
    with stream(model) as player:
        outputs = [player(frame) for frame in clip()]
        weighted([outputs[t] for t in chosen]).backward()
    return found(model)


def found(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(grads: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert grads.keys() == expected.keys()
    for name, gradient in expected.items():
        rtol, atol = (1e-10, 1e-12) if gradient.dtype == torch.float64 else (1e-5, 1e-7)  # scales are float32
        assert torch.allclose(grads[name], gradient, rtol=rtol, atol=atol), name


@PRECISIONS
@pytest.mark.parametrize("chosen", [(0, 1, 2), (2,), (1,)], ids=["all", "last", "middle"])
@KINDS
def test_gradients_are_those_without_checkpointing(
    precision: str, reference: str, chosen: tuple[int, ...], reentrant: bool
) -> None:
    """WHEN only a later frame has a loss, THEN its gradient still passes through the keyframe's checkpoint."""
    model = net_of(precision, reference)
    expected = gradients(model, plain, chosen)
    assert_same(gradients(model, once(reentrant), chosen), expected)


@PRECISIONS
@pytest.mark.parametrize(
    "how",
    [nested(outer, inner) for outer in (True, False) for inner in (True, False)] + [in_a_row(True), in_a_row(False)],
    ids=["reentrant-reentrant", "reentrant-not", "not-reentrant", "not-not", "row-reentrant", "row-not"],
)
def test_checkpoints_nest_and_follow_each_other(precision: str, reference: str, how: Callable[..., Tensor]) -> None:
    model = net_of(precision, reference)
    assert_same(gradients(model, how), gradients(model, plain))


@KINDS
def test_the_backward_pass_may_come_late(reference: str, reentrant: bool) -> None:
    """GIVEN a stream that went on, was reset and closed, THEN the graph has all that it needs."""
    model = net_of(DYNAMIC, reference)
    expected = gradients(model, plain)
    model.how = once(reentrant)
    model.zero_grad()
    with stream(model) as player:
        loss = weighted([player(frame) for frame in clip()])
        for frame in video(4, seed=3):
            player(frame.double())
        state, shares, position = player.get_state(), player.bit_shares(), player.position
        loss.backward(retain_graph=True)
        assert (player.bit_shares(), player.position) == (shares, position)  # nothing is counted or written twice
        for call, (x, z) in state["caches"].items():
            assert torch.equal(player.get_state()["caches"][call][0], x)
            assert torch.equal(player.get_state()["caches"][call][1], z)
        player.reset()
    assert_same(found(model), expected)
    model.zero_grad()
    loss.backward()
    assert_same(found(model), expected)


@KINDS
def test_frames_may_have_a_loss_and_a_backward_pass_each(reentrant: bool) -> None:
    """As in truncated training: the graph through the keyframe is asked for several times."""
    results = []
    for how in (plain, once(reentrant)):
        model = net_of(STATIC, "float")
        model.how = how
        with stream(model) as player:
            for t, frame in enumerate(clip()):
                weighted([player(frame)]).backward(retain_graph=t < 2)
        results.append(found(model))
    assert_same(results[1], results[0])


@KINDS
def test_gradients_of_gradients(reference: str, reentrant: bool) -> None:
    results = []
    for how in (plain, once(reentrant)):
        model = net_of(STATIC, reference)
        model.how = how
        weights = [model.stem.weight, model.first.weight, model.again.weight]
        with stream(model) as player:
            loss = weighted([player(frame) for frame in clip()])
        penalty = sum(g.square().sum() for g in torch.autograd.grad(loss, weights, create_graph=True))
        results.append(torch.autograd.grad(penalty, weights))
    for gradient, expected in zip(results[1], results[0], strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-12)


@KINDS
def test_in_evaluation_mode_with_gradients(reentrant: bool) -> None:
    """No graph goes through time then, but the recomputation of a residual frame is that of a residual frame."""
    model = net_of(DYNAMIC, "running").eval()
    assert_same(gradients(model, once(reentrant)), gradients(model, plain))


@KINDS
def test_outside_a_stream_nothing_changes(reentrant: bool) -> None:
    model = net_of(STATIC, "float")
    results = []
    for how in (plain, once(reentrant)):
        model.how = how
        model.zero_grad()
        weighted([model(frame) for frame in clip()]).backward()
        results.append(found(model))
    assert_same(results[1], results[0])


def test_torch_is_left_as_it_was() -> None:
    module = torch.utils.checkpoint
    before = {name: value for name, value in vars(module).items() if "heckpoint" in name}
    model = net_of(STATIC, "float")
    gradients(model, once(True))
    model.how = lambda net, x: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with stream(model) as player, pytest.raises(RuntimeError, match="out of memory"):
        player(clip()[0])
    assert {name: value for name, value in vars(module).items() if "heckpoint" in name} == before


def test_a_backward_pass_in_another_thread() -> None:
    model = net_of(DYNAMIC, "running")
    expected = gradients(model, plain)
    model.how, loss = once(False), None
    model.zero_grad()
    with stream(model) as player:
        loss = weighted([player(frame) for frame in clip()])
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert_same(found(model), expected)


@KINDS
def test_memory_is_free_without_a_backward_pass(reference: str, reentrant: bool) -> None:
    """GIVEN outputs that nobody keeps, THEN neither caches nor logs stay."""
    model = net_of(STATIC, reference)
    model.how = once(reentrant)
    gc.collect()
    gc.disable()
    try:
        with stream(model) as player:
            outputs = [player(frame) for frame in clip()]
            alive = [weakref.ref(cache.z) for cache in player._state.caches.values()]
            assert all(ref() is not None for ref in alive)
        del outputs
        assert all(ref() is None for ref in alive)
    finally:
        gc.enable()


def test_fewer_activations_are_kept() -> None:
    """What checkpointing is for: autograd saves less than without it."""
    sizes = {}
    for name, how in {"plain": plain, "checkpoint": once(False)}.items():
        model = net_of(STATIC, "float")
        model.how = how
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.nbytes)
            return tensor

        with stream(model) as player, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for frame in clip():
                player(frame)
        sizes[name] = sum(saved)
    assert sizes["checkpoint"] < 0.75 * sizes["plain"]


# --- what cannot be followed ----------------------------------------------------------------------------------------


class ForeignCheckpoint(torch.autograd.Function):
    """Activation checkpointing as other libraries bring along: reentrant, and not torch's."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            z = ctx.function(x)
        torch.autograd.backward(z, gradient)
        return None, x.grad


def foreign(net: Net, x: Tensor) -> Tensor:
    return ForeignCheckpoint.apply(net.block, x)


def test_another_checkpointing_is_refused_in_a_stream_and_works_outside() -> None:
    model = net_of(STATIC, "float")
    with pytest.raises(StreamError, match=r"layer first is computed again .* write torch\.utils\.checkpoint\."):
        gradients(model, foreign)
    results = []
    for how in (plain, foreign):
        model.how = how
        model.zero_grad()
        weighted([model(frame) for frame in clip()]).backward()
        results.append(found(model))
    assert_same(results[1], results[0])


def test_a_checkpoint_that_does_something_else_the_second_time_is_refused() -> None:
    model = net_of(STATIC, "float")
    runs = []

    def swapped(net: Net, x: Tensor) -> Tensor:
        def body(x: Tensor) -> Tensor:
            runs.append(len(runs))
            return net.part(net.first(x).relu()) if len(runs) <= 3 else net.first(net.again(x))

        return checkpoint(body, x, use_reentrant=False, determinism_check="none")

    with pytest.raises(
        StreamError, match=r"layer again is called when .* computed again, where it had called layer f"
    ):
        gradients(model, swapped)
