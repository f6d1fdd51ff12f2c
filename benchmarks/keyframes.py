"""When keyframes come, on real driving video: spread over an interval, or where the residual says so, against fixed T.

DDRNet-23-slim on camvid/val (36 frames), W8A8->W4A{0,4} with the first layer at W8A8->W8A8, channel weights, unsigned
grid, running reference, ranges from camvid/calib. Agreement is with the float model, % of pixels.

An interval depends on nothing before its keyframe, so each frame of val is a keyframe once, of an interval of 17.
Every schedule is made of pieces of those: fixed T, a scene change, and drift, each begun at frames 0 to 7 of val and
averaged. A drift schedule starts an interval after a frame whose signal is above a threshold. The threshold is the one
whose average bit operations on val itself come nearest to those of the fixed T: more favourable than any calibration.

Spread keyframes are run as streams, begun at frames 0, 2, 4 and 6 of val. Frames from T + 6 on are measured, by when
every layer has been refreshed. The fixed T beside them is measured on the same frames, each at every position.

    uv run --group dev python benchmarks/keyframes.py --runs FOLDER --threads 1  # 800 frames; goes on where it stopped
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CLASSES, camvid, ddrnet, machine, parser, require, segment, write
from torch import Tensor

from resq_plugin import ResQConfig, calibrate, convert, measure_cost, stream
from resq_plugin.backends import TorchResidualLayer
from resq_plugin.conversion import load_ranges, save_ranges
from resq_plugin.evaluation import Agreement, MeanIoU, float_predictions
from resq_plugin.method import relative_change

SHAPE = (1, 3, 360, 480)
FIRST = "backbone.stem.0.conv"
LONGEST = 17
STARTS = range(8)
BEGINS = (0, 2, 4, 6)
SPREAD = (4, 8, 16)
INTERVALS = (4, 8, 12)
SETTINGS: dict[str, Any] = {
    "weights": "channel",
    "keyframe_grid": "unsigned",
    "reference": "running",
    "policy": {"threshold": 0.1},
    "overrides": {FIRST: "W8A8->W8A8"},
    "calibration": {"candidates": 40},
}
Frame = dict[str, Any]
"""One frame of an interval: agreement, confusion, relative BOPs, and the signals that a schedule may look at."""
SIGNALS = {
    "share": "share of pixels at 4 bits",
    "residual": "norm of δ over that of keyframe activations, mean of the layers",
    "error": "norm of δ - q(δ) over that of keyframe activations, mean of the layers",
    "clipped": "share of residuals at the ends of their grid",
    "change": "relative change of the picture, known before (`scene_change`)",
}


def config_of(interval: int, kind: str = "interval") -> ResQConfig:
    """The setting of all rows."""
    return ResQConfig.parse("W8A8->W4A{0,4}", interval=interval, schedule={"kind": kind}, **SETTINGS)


@contextmanager
def watching(found: dict[str, list[float]]) -> Iterator[None]:
    """Note what the residuals of each layer tell."""
    original = TorchResidualLayer.quantize_residual

    def watched(layer: Any, x: Tensor, reference: Tensor, *args: Any) -> Any:
        delta_hat, choice = original(layer, x, reference, *args)
        delta, quantizer = x - reference, list(layer.residual_quantizers)[-1]
        pixels, ends = x.numel() / x.shape[layer.channel_dim], (2 ** (quantizer.bits - 1) - 1) * quantizer.scale
        for name, values in (("residual", delta), ("error", delta - delta_hat)):
            found.setdefault(name, []).append(float((values.square().sum() / pixels).sqrt() / layer.activation_norm))
        found.setdefault("clipped", []).append(float((delta_hat.abs() > 0.999 * ends).float().mean()))
        return delta_hat, choice

    TorchResidualLayer.quantize_residual = watched
    try:
        yield
    finally:
        TorchResidualLayer.quantize_residual = original


class Bench:
    """The network, its video, and what ran so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        args.runs.mkdir(parents=True, exist_ok=True)
        self.val, self.labels = camvid(args.data, "val")
        self.network = ddrnet(require(args.data / "weights" / "ddrnet23slim_camvid.pth"))
        self._convert(LONGEST)
        self.floats = self._kept("float", lambda: float_predictions(self.network, [self.val], segment)[0])
        self.cost = measure_cost(self.network, SHAPE)
        self.values: dict[str, Any] = {"data": "CamVid val, 36 frames, 480x360", "machine": machine()}

    def _convert(self, interval: int, kind: str = "interval") -> None:
        self.network = ddrnet(require(self.args.data / "weights" / "ddrnet23slim_camvid.pth"))
        convert(self.network, config_of(interval, kind), example=self.val[0])
        file = self.args.runs / "ranges.pt"
        if not file.exists():
            frames, _ = camvid(self.args.data, "calib")
            calibrate(self.network, [frames[:16], frames[16:]])
            save_ranges(self.network, file)
        load_ranges(self.network, file)

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        file = self.args.runs / f"{name}.pt"
        if not file.exists():
            torch.save(make(), file)
        return torch.load(file, weights_only=True)

    def relative(self, pixels: dict[str, dict[int, int]]) -> float:
        """BOPs of a residual frame over those of a keyframe, from the pixels that got each bit width."""
        shares = {name: {b: n / sum(pool.values()) for b, n in pool.items()} for name, pool in pixels.items()}
        return measure_cost(self.network, SHAPE, shares=shares).bops_residual / self.cost.bops_keyframe

    def interval(self, start: int) -> list[Frame]:
        """Run the interval whose keyframe is that frame."""
        return self._kept(f"interval{start}", lambda: list(self._run(start)))

    @torch.no_grad()
    def _run(self, start: int) -> Iterator[Frame]:
        with stream(self.network) as video:
            for t, (frame, label) in enumerate(zip(self.val[start:], self.labels[start:], strict=True)):
                if t == LONGEST:
                    return
                found: dict[str, list[float]] = {}
                with watching(found):
                    labels = segment(video(frame))
                pixels = video.pixel_counts(t) if t else {}
                woken = sum(pool[4] for pool in pixels.values()), sum(sum(pool.values()) for pool in pixels.values())
                yield {
                    "agreement": float((labels == self.floats[start + t]).float().mean()),
                    "confusion": confusion(labels, label),
                    "bops": self.relative(pixels) if t else 1.0,
                    "share": woken[0] / woken[1] if t else 0.0,
                    "change": float(relative_change(frame, self.val[start])),
                    **{name: float(np.mean(values)) for name, values in found.items()},
                }

    def spread(self, interval: int) -> dict[str, Any]:
        """Measure a spread keyframe in its steady state."""
        self._convert(interval, "spread")
        scores, agreement = MeanIoU(CLASSES), Agreement()
        with torch.no_grad(), stream(self.network) as video:
            for start in BEGINS:
                video.reset()
                for index, frame in enumerate(self.val[start:], start):
                    labels = segment(video(frame))
                    if index >= interval + BEGINS[-1]:
                        scores.update(labels, self.labels[index])
                        agreement.update(labels, self.floats[index])
            cost = measure_cost(self.network, SHAPE, shares=video.bit_shares())
        return row("spread", interval, agreement.compute(), scores.compute(), cost.bops_per_frame, cost.peak_bops)


def confusion(labels: Tensor, target: Tensor) -> Tensor:
    """Counts (classes, classes) of target and label."""
    scores = MeanIoU(CLASSES)
    scores.update(labels, target)
    return scores.confusion


def mean_iou(counts: Tensor) -> float:
    """Mean IoU in percent of the classes that occur."""
    scores = MeanIoU(CLASSES)
    scores.confusion = counts
    return scores.compute()


def row(schedule: str, interval: float, agreement: float, miou: float, bops: float, peak: float) -> dict[str, Any]:
    """One line of a table; bit operations are relative to a keyframe."""
    values = {"agreement": agreement, "miou": miou, "relative_bops": bops, "relative_peak": peak}
    return {"schedule": schedule, "interval": round(interval, 2), **{k: round(v, 4) for k, v in values.items()}}


def play(
    intervals: list[list[Frame]], longest: int, is_over: Callable[[Frame, Frame], bool] = lambda *_: False
) -> dict[str, Any]:
    """Put a schedule together from intervals.

    Args:
        intervals: by their first frame.
        longest: T.
        is_over: whether an interval ends, of its last frame and of the one that would follow.
    """
    frames, keyframes = [], 0
    for start in STARTS:
        first = start
        for index in range(start, len(intervals)):
            own, t = intervals[first], index - first
            if t and (t >= longest or (t > 1 and is_over(own[t - 1], own[t]))):
                first, own, t = index, intervals[index], 0
            frames.append(own[t])
            keyframes += t == 0
    return row_of("fixed", len(frames) / keyframes, frames)


def at_every_position(intervals: list[list[Frame]], interval: int) -> dict[str, Any]:
    """A fixed T on the frames that spread keyframes are measured on."""
    measured = range(interval + BEGINS[-1], len(intervals))
    frames = [intervals[index - t][t] for index in measured for t in range(interval)]
    return row_of("fixed", interval, frames)


def row_of(schedule: str, interval: float, frames: list[Frame]) -> dict[str, Any]:
    """The average of frames that ran."""
    agreement, bops = (float(np.mean([frame[key] for frame in frames])) for key in ("agreement", "bops"))
    return row(schedule, interval, 100 * agreement, mean_iou(sum(frame["confusion"] for frame in frames)), bops, 1.0)


def drift(intervals: list[list[Frame]], signal: str, bops: float) -> dict[str, Any]:
    """The drift schedule of a signal with the average bit operations nearest to ``bops``."""
    levels = sorted(frame[signal] for own in intervals for frame in own[1:])
    now = signal == "change"  # which is known before the frame runs
    found = [
        play(intervals, LONGEST, lambda last, new, level=level: (new if now else last)[signal] > level)
        for level in np.quantile(levels, np.linspace(0, 1, 201))
    ]
    return {**min(found, key=lambda row: abs(row["relative_bops"] - bops)), "schedule": signal}


def spread_table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/time.md."""
    lines = ["| T | keyframes | peak % | average % | mIoU | agreement % |", "|---|---|---|---|---|---|"]
    for found in rows:
        bops = f"{100 * found['relative_peak']:.1f} | {100 * found['relative_bops']:.1f}"
        kind = "every T frames" if found["schedule"] == "fixed" else "spread"
        lines.append(f"| {found['interval']} | {kind} | {bops} | {found['miou']:.1f} | {found['agreement']:.2f} |")
    return "\n".join(lines)


def drift_table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/time.md: mIoU and agreement, average BOPs of each group of rows in the heading."""
    groups = [[found for found in rows if found["schedule"] == name] for name in ("fixed", *SIGNALS)]
    heads = [
        f"T = {length} ({100 * found['relative_bops']:.1f} %)"
        for length, found in zip(INTERVALS, groups[0], strict=True)
    ]
    lines = [f"| keyframe after a frame of high | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for group, name in zip(groups, ("nothing: fixed T", *SIGNALS.values()), strict=True):
        cells = (f"{found['miou']:.1f} / {found['agreement']:.2f}" for found in group)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what has not run yet."""
    options = parser(__doc__, "keyframes.json")
    options.add_argument("--runs", type=Path, required=True, help="folder of what ran")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    intervals = [bench.interval(start) for start in range(len(bench.val))]
    rows = []
    for length in INTERVALS:
        fixed = play(intervals, length)
        rows += [fixed, *(drift(intervals, signal, fixed["relative_bops"]) for signal in SIGNALS)]
    bench.values |= {"signals": SIGNALS, "drift": rows}
    rows = []
    for length in SPREAD:
        rows.append(at_every_position(intervals, length))
        file = args.runs / f"spread{length}.json"
        if not file.exists():
            write(file, bench.spread(length))
        found = json.loads(file.read_text())
        base = bench.cost.bops_keyframe
        rows.append({**found, **{key: found[key] / base for key in ("relative_bops", "relative_peak")}})
    write(args.out, {**bench.values, "spread": rows})
    print(spread_table(rows), drift_table(bench.values["drift"]), sep="\n\n")


if __name__ == "__main__":
    main()
