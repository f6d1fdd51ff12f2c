"""What the tests of the core share: the paper's equations written out plainly, small nets, ranges without a search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resq_plugin import ResQConfig, convert, stream
from resq_plugin.backends.torch_layer import TorchResidualLayer
from resq_plugin.conversion.folding import evaluating, fold_batch_norms
from resq_plugin.method.layers import ResidualLayer, executing, residual_layers

# --- the paper's equations ------------------------------------------------------------------------------------------


def eq1(x: Tensor, s: Tensor | float, b: int) -> Tensor:
    """q(x) = s · clamp(⌊x / s⌉, -2^(b-1), 2^(b-1) - 1)."""
    if b == 0:
        return torch.zeros_like(x)
    return torch.clamp(torch.round(x / s), -(2 ** (b - 1)), 2 ** (b - 1) - 1) * s


def eq6(r_min: Tensor, r_max: Tensor, b: int) -> Tensor:
    """s = 2 max(r_max, -r_min) / (2^b - 1)."""
    return 2 * torch.maximum(r_max, -r_min) / (2**b - 1)


def eq7(w: Tensor, b: int) -> Tensor:
    """ŵ of the range min w, max w, one scale for the tensor.

    If w = min w is the largest in magnitude, w / s = -(2^b - 1) / 2 by Eq. 6: a tie, which half to even rounds to
    -2^(b-1). Floats miss the tie by a rounding error to either side, so it is written out.
    """
    s = eq6(w.min(), w.max(), b)
    is_tie = w / s <= -(2**b - 1) / 2 * (1 - 2**-20)
    return torch.where(is_tie, -(2 ** (b - 1)) * s, eq1(w, s, b))


def max_lsb(found: Tensor, expected: Tensor, lsb: float) -> float:
    """Largest difference in units of one step."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max()) / lsb


def step_of(z: Tensor, bits: int = 16) -> float:
    """One step of a grid of that many bits over the range of ``z``, by Eq. 6."""
    return 2 * float(z.abs().max()) / (2**bits - 1)


# --- models and videos ----------------------------------------------------------------------------------------------


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a net with fixed weights and batch norms that do something, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = build()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None:
                    module.running_mean.uniform_(-0.3, 0.3)
                    module.running_var.uniform_(0.3, 1.5)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.uniform_(module.bias, -0.4, 0.4)
    return net.eval()


def in_use(model: nn.Module, frames: Tensor) -> nn.Module:
    """Give batch norms the statistics of some frames (N, C, H, W), and parameters that do something."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.4, 0.4)
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(frames)
    return model.eval()


def video(frames: int = 5, shape: Sequence[int] = (2, 3, 12, 16), seed: int = 0, motion: float = 0.15) -> list[Tensor]:
    """Frames (N, C, H, W) that resemble their predecessors."""
    noise = torch.randn((frames, *shape), generator=torch.Generator().manual_seed(seed))
    noise[1:] *= motion
    return list(noise.cumsum(0))


class Plain(nn.Sequential):
    """`nn.Sequential` at the root: foldable batch norms, in-place ReLU right after a convolution, stride, groups."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 4, 1),
        )


class Residual(nn.Module):
    """A ResNet: skip connections with in-place addition and ReLU, a projection, a linear head on (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.conv1 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, frame: Tensor) -> Tensor:
        x = self.stem(frame)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.head(self.relu(out).mean((2, 3)))


class Mobile(nn.Module):
    """A MobileNet block: depthwise, squeeze and excitation, in-place clipping on what the next layer has read."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), nn.BatchNorm2d(8))
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project = nn.Sequential(nn.Conv2d(8, 3, 1, bias=False), nn.BatchNorm2d(3))

    def forward(self, frame: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(self.expand(frame)))
        gate = torch.sigmoid(self.excite(F.relu_(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x.mul_(gate)
        z = self.project(x)
        if not self.training:
            x.zero_()  # the project layer's input is gone before the next frame comes
        return frame + z


class UNet(nn.Module):
    """Encoder and decoder: pooling, transposed convolution with batch norm, concatenation, interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 6, 3, padding="same"), nn.Conv2d(6, 8, 3, padding=2, dilation=2)])
        self.up = nn.ModuleDict({"conv": nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), "norm": nn.BatchNorm2d(6)})
        self.mix = nn.Conv2d(12, 4, 3, padding=1, padding_mode="reflect")

    def forward(self, frame: Tensor) -> Tensor:
        skip = torch.relu(self.blocks[0](frame))
        x = torch.relu(self.blocks[1](F.max_pool2d(skip, 2)))
        x = self.up["norm"](self.up["conv"](x))
        x = F.leaky_relu(self.mix(torch.cat([x, skip], dim=1)), 0.1, inplace=True)
        return F.interpolate(x, scale_factor=2.0, mode="bilinear")


class Pyramid(nn.Module):
    """One head used at two scales of a frame, known under two names, with a batch norm that only one use passes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 6, 3, padding=1)
        self.alias = self.head
        self.norm = nn.BatchNorm2d(6)

    def forward(self, frame: Tensor) -> Tensor:
        fine = F.relu_(self.stem(frame))
        coarse = F.relu_(self.norm(self.head(F.avg_pool2d(fine, 2))))
        return self.alias(fine) + F.interpolate(coarse, scale_factor=2.0)


class Tokens(nn.Module):
    """A transformer's MLP: linear layers on (N, L, C) with layer norm and skip, and one on (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, frame: Tensor) -> Tensor:
        x = self.embed(frame).flatten(2).transpose(1, 2)
        x = x + self.mlp(self.norm(x))
        return self.head(x.mean(1))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "mobile": Mobile,
    "unet": UNet,
    "pyramid": Pyramid,
    "tokens": Tokens,
}


# --- conversion without a search ------------------------------------------------------------------------------------


def fit(model: nn.Module, frames: Sequence[Tensor], *, fold: bool = True) -> nn.Module:
    """Set every range to the extremes seen in float on one clip; a stand-in for calibration that has no search."""
    if fold:
        fold_batch_norms(model, frames[0])
    calls: dict[str, int] = {}
    first: dict[tuple[str, int], Tensor] = {}
    bounds: dict[str, list[float]] = {}
    squares: dict[str, list[Tensor]] = {}

    def watch(layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        name = layer.settings.name
        key = name, calls.setdefault(name, 0)
        calls[name] += 1
        x_0 = first.setdefault(key, x.clone())
        low, high, half = bounds.setdefault(name, [0.0, 0.0, 0.0])
        bounds[name] = [min(low, float(x.min())), max(high, float(x.max())), max(half, float((x - x_0).abs().max()))]
        squares.setdefault(name, []).append(x.double().square().sum(layer.channel_dim).mean())
        return layer.dense(x, **options)

    with evaluating(model), torch.no_grad(), executing(watch):
        for frame in frames:
            calls.clear()
            model(frame)
    for name, layer in residual_layers(model).items():
        if name not in bounds:
            continue
        low, high, half = bounds[name]
        quantizers = layer.activation_quantizers()
        signed = layer.settings.config.keyframe_grid == "symmetric" or low < 0
        quantizers["keyframe"].set_range(low, high, signed=signed)
        if layer.settings.config.reference != "float":  # residuals carry the keyframe's own error
            half += float(quantizers["keyframe"].scale.detach())
        for key, quantizer in quantizers.items():
            if key != "keyframe":
                quantizer.set_range(-half, half)
        layer.activation_norm.fill_(float(torch.stack(squares[name]).mean().sqrt()))
    return model


def build(
    net: str | Callable[[], nn.Module] | nn.Module,
    precision: str = "W8A8->W4A4",
    frames: Sequence[Tensor] | None = None,
    *,
    fold: bool = True,
    **settings: Any,
) -> nn.Module:
    """Return a converted net with ranges: of the zoo by name, of a class, or a copy of one at hand."""
    make = ZOO[net] if isinstance(net, str) else net
    model = copy.deepcopy(make) if isinstance(make, nn.Module) else seeded(make)
    convert(model, ResQConfig.parse(precision, **settings))
    return fit(model, video() if frames is None else frames, fold=fold)


def play(model: nn.Module, frames: Iterable[Tensor], **options: Any) -> list[Tensor]:
    """Run frames through a new stream."""
    with torch.no_grad(), stream(model, **options) as player:
        return [player(frame) for frame in frames]


def outside(model: nn.Module, frames: Iterable[Tensor]) -> list[Any]:
    """Call the model outside of any stream: frame quantization."""
    with torch.no_grad():
        return [model(frame) for frame in frames]


def flat(outputs: object) -> list[Tensor]:
    """All tensors of outputs of any type, in order."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit for bit, frame by frame."""
    assert len(found) == len(expected)
    unequal = [t for t, (a, b) in enumerate(zip(found, expected, strict=True)) if not torch.equal(a, b)]
    assert not unequal, f"frames {unequal} differ"


def assert_trains(model: nn.Module, learned: Sequence[nn.Parameter]) -> None:
    """Four steps on a clip lower the loss, and the first has a gradient for all of ``learned``. Outputs are (2, 5)."""
    frames, target = video(3), torch.zeros(2, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        with stream(model) as player:
            loss = sum((player(frame) - target).square().mean() for frame in frames)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in learned)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def exact_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take q out of Eq. 5, which leaves Eq. 4: all that a stream does but quantize."""

    def keyframe(layer: TorchResidualLayer, x: Tensor, **options: Any) -> Tensor:
        return layer.dense(x, **options)

    def residual(layer: TorchResidualLayer, delta: Tensor, **options: Any) -> Tensor:
        return layer.linear(delta, layer.weight_of("float"), None, **options)

    def difference(layer: TorchResidualLayer, x: Tensor, reference: Tensor, workspace: object) -> tuple[Tensor, None]:
        return x - reference, None

    monkeypatch.setattr(TorchResidualLayer, "quantize_keyframe", lambda layer, x: x.clone())
    monkeypatch.setattr(TorchResidualLayer, "quantize_residual", difference)
    monkeypatch.setattr(TorchResidualLayer, "apply_keyframe", keyframe)
    monkeypatch.setattr(TorchResidualLayer, "apply_residual", residual)
