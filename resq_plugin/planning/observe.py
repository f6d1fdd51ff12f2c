"""Windows of what layers read over an interval, and of how much the output of the network asks of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from resq_plugin.calibration import Window, choose_windows, cut_outputs, cut_windows, inside, square_sum
from resq_plugin.errors import ConfigError
from resq_plugin.method import Call, CountingExecutor, ResidualLayer, executing

__all__ = ["LayerView", "Observer", "View", "draw_score", "find_scores", "observe", "score_tensor"]

Key = tuple[str, int, torch.Size]
KEEPS_STATE = (
    "the output of a frame depends on a state that the model keeps from the frame before; search runs each frame on "
    "its own, so make that state a part of the frame: clips of [(frame, state), ...] of a float run, and "
    "run=lambda step: model(*step)."
)


@dataclass
class View:
    """One call of a layer over an interval.

    Attributes:
        inputs: windows (n, C, h, w) at t = 0, 1, ..., T - 1.
        gradients: of as many scores, windows of the output's shape at each t; or () the root mean square of a
            gradient, where windows do not tell outputs apart (transposed convolutions).
        share: part of all output positions that the windows hold.
        inside: (n, h, w), 1 for pixels of the map and 0 for what pads it.
    """

    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    share: float = 1.0
    inside: Tensor = field(default_factory=lambda: torch.ones(()))


@dataclass
class LayerView:
    """What was seen of one layer.

    Attributes:
        views: one per call and interval.
        source: a number that layers which read the same tensor share.
        square_sum: of all inputs.
        pixels: how many there were.
        lowest: smallest input.
    """

    views: list[View] = field(default_factory=list)
    source: int = -1
    square_sum: float = 0.0
    pixels: int = 0
    lowest: float = float("inf")

    @property
    def activation_norm(self) -> float:
        """Root mean square over pixels of ‖x‖, the norm being taken over channels."""
        return float((self.square_sum / max(self.pixels, 1)) ** 0.5)


class Observer(CountingExecutor):
    """Executor that runs layers in float, with a graph, and keeps windows.

    Args:
        positions: output positions per layer and interval.
        seed: of the places of windows.
    """

    def __init__(self, positions: int, seed: int = 0) -> None:
        super().__init__()
        self.positions = positions
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, LayerView] = {}
        self._windows: dict[Key, list[Window]] = {}
        self._views: dict[Key, View] = {}
        self._sources: dict[tuple[int, int, torch.Size], int] = {}
        self._position = 0

    def start_interval(self) -> None:
        """Begin an interval."""
        self._windows.clear()
        self._views.clear()

    def start_frame(self, position: int) -> None:
        """Begin its frame t."""
        self._position = position
        self.calls.clear()
        self._sources.clear()

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer in float."""
        name, key = layer.settings.name, (*call, x.shape)
        found = self.layers.setdefault(name, LayerView())
        with torch.no_grad():
            if key not in self._views:
                if self._position:
                    msg = (
                        f"call {call[1]} of layer {name} with input {tuple(x.shape)} is not in the first frame of its "
                        f"interval; exclude=({name!r},) keeps this layer in float."
                    )
                    raise ConfigError(msg)
                self._windows[key] = choose_windows(layer, x, self.positions, self.generator)
                self._views[key] = View(inside=inside(layer, x, self._windows[key]))
                found.views.append(self._views[key])
            view = self._views[key]
            view.inputs.append(cut_windows(layer, x, self._windows[key]))
            view.gradients.append([])
            found.square_sum += square_sum(x)
            found.pixels += x.numel() // max(x.shape[layer.channel_dim], 1)
            found.lowest = min(found.lowest, float(x.min()))
            if found.source < 0:
                place = (x.data_ptr(), x._version, x.shape)
                found.source = self._sources.setdefault(place, len(self._sources))
        z = layer.dense(x, **options)
        if not z.requires_grad:
            z = z.detach().requires_grad_().clone()
        windows, gradients = self._windows[key], view.gradients[-1]
        probe = cut_outputs(layer, z.detach(), windows)
        if probe is None:
            view.share = view.inputs[-1].numel() / x.numel()
        else:
            view.share = probe.numel() / z.numel()

        def keep(gradient: Tensor) -> None:
            cut = cut_outputs(layer, gradient, windows)
            gradients.append(gradient.square().mean().sqrt() if cut is None else cut.clone())

        z.register_hook(keep)
        return z


def find_scores(output: Any) -> Tensor | None:
    """The first floating-point tensor of a model's output, or None."""
    floats = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return next(floats, None)


def score_tensor(output: Any) -> Tensor:
    """The first floating-point tensor of a model's output: class scores (N, K, ...), or values.

    Raises:
        ConfigError: there is none that gradients can flow from.
    """
    scores = find_scores(output)
    if scores is not None:
        return scores
    msg = (
        "the model returns no floating-point tensor, so that nobody can tell how its output depends on its layers; "
        "pass a model that returns class scores or values, and predict=... for what is made of them."
    )
    raise ConfigError(msg)


def draw_score(scores: Tensor, criterion: str, generator: torch.Generator) -> Tensor:
    """A random vector v with E[v vᵀ] the curvature of the criterion at the float output.

    For ``kl`` that is the Fisher matrix, v = p - onehot(y) with y drawn from p = softmax(scores) at every position;
    half of (vᵀ J e)² is then the second-order KL divergence that an error e makes, in expectation. For ``squared``
    it is the identity, v = ±1.

    Args:
        scores: (N, K, ...).
        criterion: ``kl`` or ``squared``.
        generator: source of randomness, on the CPU.
    """
    if criterion == "squared":
        signs = torch.randint(2, scores.shape, generator=generator).to(scores.device, scores.dtype)
        return 2 * signs - 1
    probabilities = scores.detach().softmax(1)
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64).to(scores.device)
    gumbel = -(-uniform.clamp_min(1e-300).log()).log()
    drawn = (scores.detach().double() + gumbel).argmax(1, keepdim=True)
    return probabilities - torch.zeros_like(probabilities).scatter_(1, drawn, 1.0)


def _leaf(tensor: Any) -> Tensor:
    """A copy that no run can change, of which gradients could flow."""
    copied: Tensor = tensor.detach().clone()
    return copied.requires_grad_() if copied.is_floating_point() else copied


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters inside."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def observe(
    model: nn.Module,
    layers: Mapping[str, ResidualLayer],
    intervals: Sequence[Sequence[Any]],
    *,
    run: Callable[[Any], Any],
    criterion: str,
    scores: int,
    positions: int,
    seed: int,
    step: Callable[[], object],
) -> dict[str, LayerView]:
    """Run intervals in float, frame by frame, with as many backward passes of random scores per frame.

    Args:
        model: converted, its batch norms folded.
        layers: of the model, by name.
        intervals: consecutive frames each, (N, C, H, W) or whatever ``run`` takes.
        run: what runs one frame.
        criterion: see `draw_score`.
        scores: backward passes per frame.
        positions: output positions per layer, over all intervals.
        seed: of everything that is drawn.
        step: called after each frame.

    Raises:
        ConfigError: the output does not depend on its layers by gradients, or on frames before this one.
    """
    observer = Observer(max(16, positions // len(intervals)), seed)
    generator = torch.Generator().manual_seed(seed)
    with _frozen(model), torch.enable_grad(), executing(observer):
        for interval in intervals:
            observer.start_interval()
            for position, frame in enumerate(interval):
                observer.start_frame(position)
                output = score_tensor(run(tree_map_only(Tensor, _leaf, frame)))
                if not output.requires_grad:
                    msg = (
                        "no gradient flows from the model's output to its layers (a prediction such as argmax has "
                        "none); pass a model that returns class scores or values, and predict=... for the rest."
                    )
                    raise ConfigError(msg)
                for index in range(scores):
                    vector = draw_score(output, criterion, generator)
                    try:
                        torch.autograd.backward(output, vector, retain_graph=index + 1 < scores)
                    except RuntimeError as error:
                        if "second time" not in str(error):
                            raise
                        raise ConfigError(KEEPS_STATE) from error
                step()
    return {name: observer.layers[name] for name in layers if name in observer.layers}
