"""What the search measures of one layer, against streams and against the divergence itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers import seeded, video
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, stream
from resq_plugin.backends import TorchResidualLayer
from resq_plugin.config import PolicyConfig, Precision, parse_precision
from resq_plugin.errors import ConfigError
from resq_plugin.method import dense_execution, residual_layers
from resq_plugin.planning.effects import LayerStudy, Scheme
from resq_plugin.planning.observe import draw_score, observe, score_tensor
from resq_plugin.planning.trial import Divergence

SHAPE = (1, 3, 8, 12)
LARGE = 10**6


class One(nn.Sequential):
    """Scores of five classes by one convolution."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, 3, padding=1))


class Two(nn.Sequential):
    """A layer, something that is not linear, in place, and a layer."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 5, 1))


def seen_of(net: nn.Module, frames: list[Tensor], scores: int, **settings: Any) -> Any:
    values = {"criterion": "kl", "scores": scores, "positions": LARGE, "seed": 0, "step": lambda: None} | settings
    return observe(net, residual_layers(net), [frames], run=net, **values)


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
@pytest.mark.parametrize("residual", ["W4A4", "W4A{0,4}", "W3A{0,3,8}"])
@pytest.mark.parametrize(("channel", "unsigned"), [(True, True), (False, False)])
def test_a_choice_is_run_as_a_stream_runs_it(reference: str, residual: str, channel: bool, unsigned: bool) -> None:
    frames = video(4, SHAPE)
    weights, grid = ("channel" if channel else "tensor"), ("unsigned" if unsigned else "symmetric")
    settings = {"reference": reference, "weights": weights, "keyframe_grid": grid, "policy": {"threshold": 0.2}}
    config = ResQConfig.parse(f"W6A5->{residual}", interval=4, **settings)
    net = seeded(One)
    convert(net, config)
    calibrate(net, [frames])
    layer = net[0]
    assert isinstance(layer, TorchResidualLayer)
    study = LayerStudy(layer, seen_of(net, frames, 1)["0"], Scheme(reference, channel, unsigned), PolicyConfig())
    precision = parse_precision(f"W8A8->{residual}")[1]
    assert precision is not None
    found = study.effects(Precision(6, 5), precision, 0.2, [precision.weight])[precision.weight]

    # The same ranges in a stream, whose errors are weighed by hand with the same gradients.
    quantizers = {"keyframe": study.keyframe_scale(5)}
    quantizers |= {f"residual.{i}": study.residual_scale(bits, 5) for i, bits in enumerate(precision.pool) if bits}
    for name, scale in quantizers.items():
        layer.activation_quantizers()[name].scale.data.copy_(scale)
    layer.activation_norm.fill_(study.norm)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), stream(net) as player:
        for t, frame in enumerate(frames):
            with dense_execution():
                exact = net(frame)
            error = player(frame) - exact
            score = draw_score(exact, "kl", generator)
            # Windows are 4×4 tiles here: (Σ g e)² of each.
            tiles = (score * error).sum(1)[0].double().unfold(0, 4, 4).unfold(1, 4, 4).sum((-1, -2))
            assert found.error[t] == pytest.approx(0.5 * float(tiles.square().sum()), rel=1e-3, abs=1e-12)
            if t:
                counts = player.pixel_counts(t)
                pool = counts["0"] if counts else {precision.pool[-1]: 1}
                mean = sum(bits * count for bits, count in pool.items()) / sum(pool.values())
                # Windows overlap by their halo, so shares are those of the map up to its border.
                assert found.bits[t] == pytest.approx(mean, abs=0.5 if len(precision.pool) > 1 else 0)


@pytest.mark.parametrize("reference", ["float", "running"])
def test_mean_bits_are_those_of_a_stream(reference: str) -> None:
    """Exactly, for a 1×1 kernel, whose windows do not overlap on a map of whole windows."""
    frames = video(4, SHAPE)
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 5, 1)))
    convert(net, ResQConfig.parse("W8A8->W4A{0,2,6}", interval=4, reference=reference, policy={"threshold": 0.2}))
    calibrate(net, [frames])
    study = LayerStudy(net[0], seen_of(net, frames, 1)["0"], Scheme(reference), PolicyConfig())  # type: ignore[arg-type]
    found = study.effects(Precision(8, 8), Precision(4, (0, 2, 6)), 0.2, [4])[4]
    for name, scale in (
        ("keyframe", study.keyframe_scale(8)),
        *((f"residual.{i}", study.residual_scale(b, 8)) for i, b in ((1, 2), (2, 6))),
    ):
        net[0].activation_quantizers()[name].scale.data.copy_(scale)
    net[0].activation_norm.fill_(study.norm)
    with torch.no_grad(), stream(net) as player:
        for t, frame in enumerate(frames):
            player(frame)
            if t:
                pool = player.pixel_counts(t)["0"]
                assert found.bits[t] == pytest.approx(sum(b * n for b, n in pool.items()) / (8 * 12), abs=0.1)
    assert len(set(found.bits)) > 2


def test_frames_on_their_own_are_keyframes() -> None:
    frames = video(3, SHAPE)
    net = seeded(One)
    convert(net, ResQConfig.parse("W8A8->W4A4", interval=3))
    calibrate(net, [frames])
    study = LayerStudy(net[0], seen_of(net, frames, 2)["0"], Scheme(), PolicyConfig())  # type: ignore[arg-type]
    whole = study.effects(Precision(4, 4), Precision(8, 8), None, [8])[8]
    each = study.frame_effect(Precision(4, 4))
    assert each.error[0] == pytest.approx(whole.error[0])
    assert min(each.error[1:]) > max(whole.error[1:]) / 10
    assert each.bits == (4.0, 4.0, 4.0)


def test_scores_have_the_curvature_of_the_divergence() -> None:
    """E[v vᵀ] = diag(p) - p pᵀ at every position, and nothing between positions."""
    scores = torch.randn(1, 3, 2, 1, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_score(scores, "kl", generator)[0, :, :, 0] for _ in range(20000)])
    p = scores.softmax(1)[0, :, :, 0]
    for place in range(2):
        expected = torch.diag(p[:, place]) - torch.outer(p[:, place], p[:, place])
        found = torch.einsum("ni,nj->ij", drawn[:, :, place], drawn[:, :, place]) / len(drawn)
        assert torch.allclose(found, expected, atol=0.01)
    across = torch.einsum("ni,nj->ij", drawn[:, :, 0], drawn[:, :, 1]) / len(drawn)
    assert torch.allclose(across, torch.zeros(3, 3), atol=0.01)
    signs = draw_score(scores, "squared", generator)
    assert set(signs.flatten().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("criterion", ["kl", "squared"])
def test_a_small_effect_is_the_divergence_that_is_measured(criterion: str) -> None:
    """The mean over many scores, of an early layer, against the net with that layer alone quantized."""
    frames = video(2, SHAPE)
    net = seeded(Two)
    convert(net, ResQConfig.parse("W8A8->W8A8", interval=2, weights="channel"))
    calibrate(net, [frames])
    study = LayerStudy(net[0], seen_of(net, frames, 400, criterion=criterion)["0"], Scheme(), PolicyConfig())  # type: ignore[arg-type]
    found = study.frame_effect(Precision(6, 6))
    for t, frame in enumerate(frames):
        with torch.no_grad(), dense_execution():
            exact = net(frame)
            first = net[0](study.quantized_keyframe(frame, 6))
            x_hat = study.quantized_keyframe(frame, 6)
            first = net[0].linear(x_hat, study.weight(6), net[0].bias)
            other = net[2](first.relu())
        divergence = Divergence(criterion)
        divergence.update(other, exact)
        assert found.error[t] == pytest.approx(divergence.total, rel=0.15)


def test_windows_on_part_of_the_map_stand_for_all_of_it() -> None:
    frames = video(2, (1, 3, 40, 40))
    net = seeded(One)
    convert(net, ResQConfig.parse("W8A8->W8A8", interval=2))
    calibrate(net, [frames])
    whole, part = (
        LayerStudy(net[0], seen_of(net, frames, 8, positions=n)["0"], Scheme(), PolicyConfig()).frame_effect(  # type: ignore[arg-type]
            Precision(4, 4)
        )
        for n in (LARGE, 400)
    )
    assert part.error[0] == pytest.approx(whole.error[0], rel=0.4)


class Branches(nn.Module):
    """Two layers that read one tensor, a transposed convolution, a linear layer, and a layer that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Linear(4, 5)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.up((self.left(x) + self.right(x)).relu())
        scores: Tensor = self.head(z.movedim(1, -1)).movedim(-1, 1)
        return scores


def test_every_kind_of_layer_is_seen_and_those_that_share_an_input_are_known() -> None:
    frames = video(3, SHAPE)
    net = seeded(Branches)
    convert(net, ResQConfig.parse("W8A8->W4A{0,4}", interval=3))
    flags = [
        parameter.requires_grad_(index % 2 == 0).requires_grad for index, parameter in enumerate(net.parameters())
    ]
    seen = seen_of(net, frames, 2)
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert set(seen) == {"left", "right", "up", "head"}
    assert seen["left"].source == seen["right"].source
    assert len({seen[name].source for name in ("left", "up", "head")}) == 3
    for name, view in seen.items():
        study = LayerStudy(getattr(net, name), view, Scheme("running"), PolicyConfig())
        fine, coarse = (study.effects(Precision(8, 8), Precision(bits, bits), None, [bits])[bits] for bits in (8, 3))
        assert len(fine.error) == 3
        assert sum(coarse.error) > sum(fine.error) > 0, name


def test_an_output_without_gradients_is_told() -> None:
    net = seeded(One)
    convert(net, ResQConfig.parse("W8A8"))
    frames = video(2, SHAPE)
    with pytest.raises(ConfigError, match="returns no floating-point tensor"):
        score_tensor(torch.zeros(2, dtype=torch.int64))

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).detach()

    with pytest.raises(ConfigError, match="no gradient flows from the model's output"):
        seen_of(Detached(), frames, 1)


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([[0.7, 0.3]]).log(), torch.tensor([[0.5, 0.5]]).log()
    kl = Divergence("kl")
    kl.update(q, p)
    assert kl.compute() == pytest.approx(0.7 * torch.log(torch.tensor(1.4)) + 0.3 * torch.log(torch.tensor(0.6)))
    squared = Divergence("squared")
    squared.update(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]))
    assert squared.compute() == (0.5 + 2.0) / 2
    assert dataclasses.is_dataclass(Scheme)
