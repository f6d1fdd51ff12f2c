"""One set of golden vectors for all backends: weights, a clip, and the integers of z in every frame.

`oracle` is written from the paper's equations in exact fractions and shares nothing with the package. What it returns
is also written out below as literals, so that neither it nor a backend can change unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from resq_plugin import ResQConfig, convert, stream
from resq_plugin.config import Precision
from resq_plugin.method.layers import residual_layers

TOOLKITS = {"aimet": "aimet_torch", "brevitas": "brevitas"}
BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(find_spec(TOOLKITS.get(name, "torch")) is None, reason=f"{name} is not installed"),
    )
    for name in ("torch", *TOOLKITS)
]

# Three output and two input channels; Eq. 7 gives 8-bit scales of 1/64 (tensor) and 1/128, 1/256, 1/64 (channel).
WEIGHT = [[255 / 256, -90 / 256], [127.5 / 256, 33 / 256], [-510 / 256, 77 / 256]]
BIAS = [0.5, -1.0, 0.25]

# Two channels of four pixels: a keyframe and two frames after it. Odd multiples of 1/32 are ties of its 8-bit grid.
CLIP = [
    [[1.0, -2.5, 3.28125, 9.0], [0.15625, 4.0, -7.9375, 0.59375]],
    [[1.3125, -2.5, 2.59375, 9.046875], [-0.03125, 4.015625, -6.6875, 0.59375]],
    [[1.5, -2.25, 3.21875, 8.5], [0.21875, 3.25, -7.75, 0.609375]],
]

KEYFRAME_SCALES = {8: Fraction(1, 16), 4: Fraction(1, 2)}
RESIDUAL_SCALES = {0: Fraction(1), 3: Fraction(1, 8), 4: Fraction(1, 8), 8: Fraction(1, 128)}
THRESHOLD = 0.05

Integers = list[list[int]]
Frame = tuple[Integers, list[int]]


# --- the equations in fractions -------------------------------------------------------------------------------------


def q(x: Fraction, s: Fraction, b: int) -> int:
    """Eq. 1: clamp(⌊x / s⌉, -2^(b-1), 2^(b-1) - 1); `round` of a Fraction takes ties to even."""
    return 0 if b == 0 else max(-(2 ** (b - 1)), min(2 ** (b - 1) - 1, round(x / s)))


def weight_grid(b: int, per_channel: bool) -> tuple[Integers, list[Fraction]]:
    """Eq. 6 and 7: integers of the weight and the scale of every output channel."""
    w = [[Fraction(value) for value in row] for row in WEIGHT]
    widest = [max(abs(value) for value in row) for row in w]
    scales = [2 * (own if per_channel else max(widest)) / (2**b - 1) for own in widest]
    return [[q(value, s, b) for value in row] for row, s in zip(w, scales, strict=True)], scales


def chosen_bits(delta: list[Fraction], pool: tuple[int, ...]) -> int:
    """Eq. 9-11 for one pixel: the first i with ε_i - ε_(i+1) < τ, else the last."""
    errors = [math.sqrt(sum((d - q(d, RESIDUAL_SCALES[b], b) * RESIDUAL_SCALES[b]) ** 2 for d in delta)) for b in pool]
    qualified = (b for b, low, high in zip(pool, errors, errors[1:], strict=False) if low - high < THRESHOLD)
    return next(qualified, pool[-1])


def oracle(keyframe: Precision, residual: Precision, weights: str, reference: str) -> Iterator[Frame]:
    """Eq. 5 frame by frame: Σ q(x) q(w) by channel and pixel, and the activation bits of every pixel."""
    columns = [[[Fraction(row[pixel]) for row in frame] for pixel in range(4)] for frame in CLIP]
    w, _ = weight_grid(keyframe.weight, weights == "channel")
    s, b = KEYFRAME_SCALES[keyframe.pool[0]], keyframe.pool[0]
    x_k = [[q(x, s, b) for x in pixel] for pixel in columns[0]]
    yield product(w, x_k), [b] * 4
    held = columns[0] if reference == "float" else [[x * s for x in pixel] for pixel in x_k]
    w, _ = weight_grid(residual.weight, weights == "channel")
    for frame in columns[1:]:
        delta = [[x - r for x, r in zip(*pair, strict=True)] for pair in zip(frame, held, strict=True)]
        bits = [chosen_bits(pixel, residual.pool) for pixel in delta]
        d = [[q(x, RESIDUAL_SCALES[b], b) for x in pixel] for pixel, b in zip(delta, bits, strict=True)]
        yield product(w, d), bits
        if reference == "running":
            steps = [RESIDUAL_SCALES[b] for b in bits]
            held = [
                [r + x * s for r, x in zip(*pair, strict=True)]
                for pair, s in zip(zip(held, d, strict=True), steps, strict=True)
            ]


def product(w: Integers, x: Integers) -> Integers:
    """z[channel][pixel]."""
    return [[sum(a * b for a, b in zip(row, pixel, strict=True)) for pixel in x] for row in w]


# --- the vectors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Golden:
    """Settings, and integers by frame, channel and pixel; bits by residual frame and pixel."""

    precision: str
    weights: str
    reference: str
    z: list[Integers]
    bits: list[list[int]] | None = None

    def __str__(self) -> str:
        return f"{self.precision} {self.weights} {self.reference}"


VECTORS = [
    Golden(
        "W8A8->W4A4",
        "tensor",
        "float",
        z=[
            [[980, -3968, 6122, 7908], [528, -768, 648, 4144], [-2010, 6336, -9069, -16066]],
            [[10, 0, -31, 0], [4, 0, -12, 0], [-18, 0, 55, 0]],
            [[16, 14, -2, -16], [8, 4, 0, -8], [-32, -22, 2, 32]],
        ],
    ),
    Golden(
        "W8A8->W4A4",
        "channel",
        "float",
        z=[
            [[1942, -7960, 12319, 15679], [2098, -2968, 2413, 16459], [-2010, 6336, -9069, -16066]],
            [[20, 0, -63, 0], [10, 0, -28, 0], [-18, 0, 55, 0]],
            [[28, 32, -6, -28], [28, 2, 4, -28], [-32, -22, 2, 32]],
        ],
    ),
    Golden(
        "W8A8->W4A4",
        "tensor",
        "quantized",
        z=[
            [[980, -3968, 6122, 7908], [528, -768, 648, 4144], [-2010, 6336, -9069, -16066]],
            [[9, 0, -27, 28], [4, 0, -10, 14], [-17, 0, 47, -56]],
            [[15, 14, -2, 16], [8, 4, 0, 8], [-31, -22, 2, -32]],
        ],
    ),
    Golden(
        "W8A8->W4A4",
        "channel",
        "running",
        z=[
            [[1942, -7960, 12319, 15679], [2098, -2968, 2413, 16459], [-2010, 6336, -9069, -16066]],
            [[17, 0, -56, 49], [12, 0, -21, 49], [-17, 0, 47, -56]],
            [[8, 32, 53, -14], [18, 2, 23, -14], [-14, -22, -46, 16]],
        ],
    ),
    Golden(
        "W8A8->W8A4",
        "channel",
        "float",
        z=[
            [[1942, -7960, 12319, 15679], [2098, -2968, 2413, 16459], [-2010, 6336, -9069, -16066]],
            [[344, 0, -1077, 0], [188, 0, -531, 0], [-294, 0, 901, 0]],
            [[508, 524, -90, -508], [508, 56, 66, -508], [-512, -370, 38, 512]],
        ],
    ),
    Golden(
        "W4A4->W3A3",
        "tensor",
        "float",
        z=[
            [[8, -27, 36, 27], [4, -10, 14, 14], [-16, 47, -64, -55]],
            [[6, 0, -11, 0], [2, 0, -4, 0], [-10, 0, 19, 0]],
            [[6, 8, -2, -8], [3, 2, 0, -4], [-12, -12, 2, 16]],
        ],
    ),
    Golden(
        "W4A4->W3A3",
        "channel",
        "quantized",
        z=[
            [[14, -56, 73, 46], [14, -21, 33, 51], [-16, 47, -64, -55]],
            [[6, -3, -8, 8], [6, 3, -16, 10], [-8, 3, 12, -11]],
            [[7, 8, -2, 8], [11, 4, -10, 10], [-10, -10, 4, -11]],
        ],
    ),
    Golden(
        "W8A8->W4A0",
        "tensor",
        "float",
        z=[
            [[980, -3968, 6122, 7908], [528, -768, 648, 4144], [-2010, 6336, -9069, -16066]],
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
    ),
    Golden(
        "W8A8->W8A{0,4,8}",
        "tensor",
        "float",
        z=[
            [[980, -3968, 6122, 7908], [528, -768, 648, 4144], [-2010, 6336, -9069, -16066]],
            [[3088, 0, -8426, 0], [1088, 0, -1800, 0], [-5576, 0, 13677, 0]],
            [[3920, 260, -1040, -256], [2112, 16, -64, -128], [-8040, -370, 1480, 512]],
        ],
        bits=[[8, 0, 8, 0], [8, 4, 8, 4]],
    ),
    Golden(
        "W8A8->W4A{0,4,8}",
        "channel",
        "quantized",
        z=[
            [[1942, -7960, 12319, 15679], [2098, -2968, 2413, 16459], [-2010, 6336, -9069, -16066]],
            [[340, 0, -969, 901], [240, 0, -334, 881], [-340, 0, 799, -1020]],
            [[25, 32, -100, 510], [30, 2, 20, 500], [-31, -22, 56, -578]],
        ],
        bits=[[8, 0, 8, 8], [4, 4, 8, 8]],
    ),
    Golden(
        "W8A8->W4A{4,8}",
        "channel",
        "running",
        z=[
            [[1942, -7960, 12319, 15679], [2098, -2968, 2413, 16459], [-2010, 6336, -9069, -16066]],
            [[340, 0, -969, 901], [240, 0, -334, 881], [-340, 0, 799, -1020]],
            [[72, 32, 869, -391], [232, 2, 354, -381], [-160, -22, -743, 442]],
        ],
        bits=[[8, 4, 8, 8], [8, 4, 8, 8]],
    ),
]


@pytest.mark.parametrize("golden", VECTORS, ids=str)
def test_the_literals_are_what_the_equations_give(golden: Golden) -> None:
    config = ResQConfig.parse(golden.precision)
    frames = list(oracle(config.keyframe, config.residual, golden.weights, golden.reference))
    assert [z for z, _ in frames] == golden.z
    if golden.bits is not None:
        assert [bits for _, bits in frames[1:]] == golden.bits


# --- the backends ---------------------------------------------------------------------------------------------------

KINDS = {
    "Conv1d": (nn.Conv1d(2, 3, 1), (1, 2, 4)),
    "Conv2d": (nn.Conv2d(2, 3, 1), (1, 2, 1, 4)),
    "Conv3d": (nn.Conv3d(2, 3, 1), (1, 2, 1, 2, 2)),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 3, 1), (1, 2, 2, 2)),
    "Linear": (nn.Linear(2, 3), (1, 4, 2)),
}
"""Float layers that all compute the same, and the shapes of their inputs."""


def run(golden: Golden, backend: str, kind: str) -> tuple[list[Tensor], list[list[int]]]:
    """z of every frame as (channels, pixels), and the bits chosen in residual frames."""
    config = ResQConfig.parse(
        golden.precision,
        backend=backend,
        weights=golden.weights,
        reference=golden.reference,
        policy={"threshold": THRESHOLD},
    )
    layer, shape = KINDS[kind]
    layer = type(layer)(2, 3) if kind == "Linear" else type(layer)(2, 3, 1)
    weight = torch.tensor(WEIGHT).T if kind == "ConvTranspose2d" else torch.tensor(WEIGHT)
    layer.load_state_dict({"weight": weight.reshape(layer.weight.shape), "bias": torch.tensor(BIAS)})
    model = convert(nn.Sequential(layer).eval(), config)
    (resq,) = residual_layers(model).values()
    for name, quantizer in resq.activation_quantizers().items():
        scale = (KEYFRAME_SCALES if name == "keyframe" else RESIDUAL_SCALES)[quantizer.bits]
        half = float(scale * (2**quantizer.bits - 1) / 2)
        quantizer.set_range(-half, half)
    resq.calibrate_weights()
    resq.activation_norm.fill_(1.0)
    outputs, bits = [], []
    with torch.no_grad(), stream(model, record_choices=True) as video:
        for frame in CLIP:
            x = torch.tensor(frame)
            z = video(x.T.reshape(shape) if kind == "Linear" else x.reshape(shape))
            outputs.append(z.reshape(4, 3).T if kind == "Linear" else z.reshape(3, 4))
            bits.append([int(b) for choice in video.choices.values() for b in choice.flatten()])
    return outputs, bits[1:]


def integers(difference: Tensor, scales: list[list[Fraction]]) -> Integers:
    """Divide by the scale of every channel and pixel; the rest is rounding of floats and nothing else."""
    steps = torch.tensor([[float(s) for s in row] for row in scales], dtype=torch.float64)
    quotient = difference.double() / steps
    assert float((quotient - quotient.round()).abs().max()) < 0.01
    return [[int(value) for value in row] for row in quotient.round()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("golden", VECTORS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_gives_the_golden_integers(backend: str, golden: Golden, kind: str) -> None:
    config = ResQConfig.parse(golden.precision)
    outputs, bits = run(golden, backend, kind)
    if golden.bits is not None:
        assert bits == golden.bits
    base = torch.tensor(BIAS)[:, None].expand(3, 4)
    for t, (z, expected) in enumerate(zip(outputs, golden.z, strict=True)):
        side = config.residual if t else config.keyframe
        _, of_weight = weight_grid(side.weight, golden.weights == "channel")
        widths = (golden.bits or [side.pool * 4] * 2)[t - 1] if t else side.pool * 4
        of_input = [(RESIDUAL_SCALES if t else KEYFRAME_SCALES)[width] for width in widths]
        found = integers(z - base, [[w * a for a in of_input] for w in of_weight])
        assert found == expected, f"frame {t}"
        base = z if t == 0 or golden.reference == "running" else outputs[0]


@pytest.mark.parametrize("golden", VECTORS, ids=str)
def test_all_backends_give_the_same_floats(golden: Golden) -> None:
    expected = run(golden, "torch", "Conv2d")[0]
    for backend, toolkit in TOOLKITS.items():
        if find_spec(toolkit) is not None:
            for found, z in zip(run(golden, backend, "Conv2d")[0], expected, strict=True):
                assert torch.equal(found, z), backend
