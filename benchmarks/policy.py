"""What wakes a pixel: regions, hysteresis, smoothing in time and shared decisions, under sensor noise and H.264.

DDRNet-23-slim on the first 24 frames of camvid/val, two intervals of T = 12, W8A8->W4A{0,4} with the first layer at
W8A8->W8A8, channel weights, unsigned grid, running reference, ranges from camvid/calib as they are. The same frames
once more with Gaussian noise (standard deviation 8 of 255) and through H.264 at three qualities; "later" are frames 13
to 36. Agreement is with the float model on the same input. A variant pays where it has more than the pixel policy at
equal bit operations; another threshold gives the line to compare with. What is no option of the package:

* hysteresis: a pixel that had 0 bits in the last frame needs τ (1 + h) to wake.
* errors averaged over time: a · before + (1 - a) · now of what 4 bits gain.
* residuals averaged over time: decisions are of a · before + (1 - a) · δ, in which noise averages out.
* shared: a layer takes the decisions of the layer before it where their inputs have the same height and width.

    uv run --group dev python benchmarks/policy.py --runs FOLDER --threads 1   # 1200 frames; goes on where it stopped
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from common import CLASSES, MEAN, STD, camvid, ddrnet, machine, parser, require, segment, write
from intervals import SETTINGS
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resq_plugin import PolicyConfig, ResQConfig, calibrate, convert, measure_cost, stream
from resq_plugin.backends import TorchResidualLayer
from resq_plugin.conversion import load_ranges, save_ranges
from resq_plugin.evaluation import Agreement, MeanIoU, float_predictions
from resq_plugin.method import (
    choose,
    error_map,
    fake_quantize,
    mix,
    quantize_to_integers,
    residual_layers,
    share_error,
)

Pixels = NDArray[np.uint8]
SHAPE = (1, 3, 360, 480)
T, FRAMES, FPS = 12, 24, 15
PRECISION = "W8A8->W4A{0,4}"
INPUTS = ("as it is", "noise 8", "H.264 crf 23", "H.264 crf 30", "H.264 crf 37", "as it is, later", "noise 8, later")
LATER = 12
"""First frame of the inputs named so."""


@dataclass(frozen=True)
class Variant:
    """A policy that is tried.

    Attributes:
        policy: what the package has.
        hysteresis: h.
        errors: a of errors averaged over time.
        residuals: a of residuals averaged over time.
        shared: layers in a row that use one decision.
    """

    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    hysteresis: float = 0.0
    errors: float = 0.0
    residuals: float = 0.0
    shared: int = 1


def _region(side: int) -> Variant:
    return Variant(PolicyConfig(granularity="region", region=side))


VARIANTS = {
    "pixel, τ = 0.1": Variant(),
    "pixel, τ = 0.15": Variant(PolicyConfig(threshold=0.15)),
    "region 4×4": _region(4),
    "region 8×8": _region(8),
    "frame": Variant(PolicyConfig(granularity="frame")),
    "hysteresis h = 0.5": Variant(hysteresis=0.5),
    "errors averaged, a = 0.5": Variant(errors=0.5),
    "residuals averaged, a = 0.5": Variant(residuals=0.5),
    "shared by 2 layers": Variant(shared=2),
    "shared by all in a row": Variant(shared=1000),
}
CLEAN_ONLY = {"shared by 2 layers", "shared by all in a row"}
LATER_TOO = {"pixel, τ = 0.1", "pixel, τ = 0.15", "hysteresis h = 0.5"}


class Trial:
    """Decides as a variant does, in place of the package's own function; memory is of the interval."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.layer = ""
        self.followers: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Begin an interval."""
        self.memory: dict[tuple[str, str], Tensor] = {}
        self.leader: tuple[Tensor, int] | None = None

    def quantize(self, layer: Any, x: Tensor, reference: Tensor, _: object = None) -> tuple[Tensor, Tensor | None]:
        """See `ResidualLayer.quantize_residual`."""
        pool = list(layer.residual_quantizers)
        scales, bits = [quantizer.scale for quantizer in pool], [quantizer.bits for quantizer in pool]
        threshold, dim, policy = layer.threshold(), layer.channel_dim, layer.settings.config.policy
        self.layer = layer.settings.name
        delta = x - reference
        if threshold is None:
            return fake_quantize(delta, scales[0], bits[0]), None
        integers = _integers(delta, scales, bits)
        choice = self._followed(x)
        if choice is None:
            seen = self._average("residual", delta, self.variant.residuals)
            pairs = zip(integers if seen is delta else _integers(seen, scales, bits), scales, strict=True)
            errors = [share_error(error_map(seen, q, scale, dim), policy) for q, scale in pairs]
            gain = self._average("error", errors[0] - errors[1], self.variant.errors)
            choice = choose([gain, torch.zeros_like(gain)], self._threshold(threshold))
            self.memory["choice", self.layer] = choice
            self.leader = choice, 1
        return mix(integers, scales, choice, dim), choice

    def _followed(self, x: Tensor) -> Tensor | None:
        """The decision that this layer shares, if any."""
        if self.leader is None or self.leader[1] >= self.variant.shared:
            return None
        choice, count = self.leader
        if choice.shape[1:] != x.shape[2:]:
            return None
        self.leader = choice, count + 1
        self.followers.add(self.layer)
        return choice

    def _average(self, kind: str, now: Tensor, weight: float) -> Tensor:
        before = self.memory.get((kind, self.layer))
        mean = now if not weight or before is None else weight * before + (1 - weight) * now
        if weight:
            self.memory[kind, self.layer] = mean
        return mean

    def _threshold(self, threshold: Tensor) -> Tensor:
        before, wake = self.memory.get(("choice", self.layer)), threshold * (1 + self.variant.hysteresis)
        return wake if before is None else torch.where(before == 0, wake, threshold)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Let every layer ask here."""
        original = TorchResidualLayer.quantize_residual
        TorchResidualLayer.quantize_residual = partialmethod(_asking, self)
        try:
            yield
        finally:
            TorchResidualLayer.quantize_residual = original


def _asking(layer: Any, trial: Trial, *args: Any) -> tuple[Tensor, Tensor | None]:
    return trial.quantize(layer, *args)


def _integers(delta: Tensor, scales: Sequence[Tensor], bits: Sequence[int]) -> list[Tensor | None]:
    pairs = zip(scales, bits, strict=True)
    return [quantize_to_integers(delta, scale, width) if width else None for scale, width in pairs]


def seen(kind: str, data: Path) -> tuple[list[Tensor], float]:
    """Frames of val as a camera or a decoder hands them on, and kbit/s of the stream."""
    kind, first = kind.removesuffix(", later"), first_of(kind)
    files = sorted(require(data / "camvid" / "val").glob("*.png"))[first : first + FRAMES]
    pixels, rate = [np.array(Image.open(file).convert("RGB")) for file in files], 0.0
    if kind.startswith("noise"):
        generator = np.random.default_rng(0)
        deviation = float(kind.rsplit(maxsplit=1)[-1])
        noisy = [np.round(image + generator.normal(0, deviation, image.shape)) for image in pixels]
        pixels = [np.clip(image, 0, 255).astype(np.uint8) for image in noisy]
    elif kind.startswith("H.264"):
        pixels, rate = h264(pixels, kind.rsplit(maxsplit=1)[-1])
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    frames = [((torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std)[None] for image in pixels]
    return [frame.contiguous() for frame in frames], rate


def first_of(kind: str) -> int:
    """Number of the first frame of an input."""
    return LATER if kind.endswith("later") else 0


def wanted_on(kind: str) -> list[str]:
    """What is tried on an input."""
    if first_of(kind):
        return [name for name in VARIANTS if name in LATER_TOO]
    return [name for name in VARIANTS if kind == INPUTS[0] or name not in CLEAN_ONLY]


def h264(pixels: list[Pixels], crf: str) -> tuple[list[Pixels], float]:
    """Encode with x264 and decode again; also kbit/s. It does not encode alike twice."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": crf, "threads": "1"})
        video.height, video.width, video.pix_fmt = *pixels[0].shape[:2], "yuv420p"
        for image in pixels:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
    rate = file.tell() * 8 * FPS / len(pixels) / 1000
    file.seek(0)
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


class Bench:
    """The network, its labels, and the rows so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        args.runs.mkdir(parents=True, exist_ok=True)
        self.labels = camvid(args.data, "val")[1]
        self.network = ddrnet(require(args.data / "weights" / "ddrnet23slim_camvid.pth"))
        self.config = ResQConfig.parse(PRECISION, interval=T, **SETTINGS)
        convert(self.network, self.config, example=torch.zeros(SHAPE))
        file = args.runs / "ranges.pt"
        if not file.exists():
            frames, _ = camvid(args.data, "calib")
            calibrate(self.network, [frames[:16], frames[16:]])
            save_ranges(self.network, file)
        load_ranges(self.network, file)
        self.rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.exists() else []

    def measure(self, kind: str) -> None:
        """Add the rows of one input that are missing."""
        done = {row["policy"] for row in self.rows if row["input"] == kind}
        wanted = wanted_on(kind)
        if set(wanted) <= done:
            return
        file = self.args.runs / f"{kind}.pt"  # all policies see one encoding
        if not file.exists():
            torch.save(seen(kind, self.args.data), file)
        frames, rate = torch.load(file, weights_only=True)
        floats = float_predictions(self.network, [frames], segment)[0]
        for name in wanted:
            if name not in done:
                found = self._run(VARIANTS[name], frames, floats, self.labels[first_of(kind) :])
                self.rows.append({"input": kind, "policy": name, "kbits_per_second": round(rate), **found})
                write(
                    self.args.out, {"data": "CamVid val, 24 frames, T = 12", "machine": machine(), "rows": self.rows}
                )

    @torch.no_grad()
    def _run(
        self, variant: Variant, frames: list[Tensor], floats: list[Tensor], targets: list[Tensor]
    ) -> dict[str, float]:
        config = dataclasses.replace(self.config, policy=variant.policy)
        for layer in residual_layers(self.network).values():
            layer.settings = dataclasses.replace(layer.settings, config=config)
        trial, scores, agreement = Trial(variant), MeanIoU(CLASSES), Agreement()
        with trial.deciding(), stream(self.network) as video:
            for index, frame in enumerate(frames):
                trial.leader = None
                if index % T == 0:
                    trial.forget()
                labels = segment(video(frame))
                scores.update(labels, targets[index])
                agreement.update(labels, floats[index])
            shares = video.bit_shares()
        cost = measure_cost(self.network, SHAPE, shares=shares)
        saved = sum(layer.policy_bops for layer in cost.layers if layer.name in trial.followers)
        pools = [layer for layer in cost.layers if layer.name in shares]
        awake = sum(layer.macs * shares[layer.name][4] for layer in pools) / sum(layer.macs for layer in pools)
        return {
            "agreement": round(agreement.compute(), 2),
            "miou": round(scores.compute(), 2),
            "relative_bops": round((cost.bops_per_frame - saved * (T - 1) / T) / cost.bops_keyframe, 4),
            "policy_bops": round((cost.policy_bops - saved) / cost.bops_keyframe, 5),
            "awake": round(awake, 3),
        }


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/time.md."""
    lines = [f"| policy | {' | '.join(INPUTS)} |", "|---|" + "---|" * len(INPUTS)]
    for name in VARIANTS:
        found = {row["input"]: row for row in rows if row["policy"] == name}
        lines.append(f"| {name} | {' | '.join(_cell(found.get(kind)) for kind in INPUTS)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    bops = f"{100 * row['awake']:.0f} / {100 * row['relative_bops']:.1f}"
    return f"{bops} / {row['miou']:.1f} / {row['agreement']:.1f}"


def main() -> None:
    """Run what has not run yet and print the table."""
    options = parser(__doc__, "policy.json")
    options.add_argument("--runs", type=Path, required=True, help="folder of the ranges")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    for kind in INPUTS:
        bench.measure(kind)
    print(table(bench.rows))


if __name__ == "__main__":
    main()
