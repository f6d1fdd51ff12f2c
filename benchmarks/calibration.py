"""Time, memory and quality of calibration: the sampled search against the exhaustive one.

    uv run --group dev python benchmarks/calibration.py              # time and memory at c = 64, r = 20, 512x1024
    uv run --group dev python benchmarks/calibration.py --quality 4  # also the loss against exhaustive search, 4 clips
    uv run --group dev python benchmarks/calibration.py --sweep      # only: eight settings against one, processor time

Quality: the loss of Eq. 8 on full maps of all calibration frames, of the range found against the best of all r
candidates, per quantizer. The exhaustive search is the same objective with nothing sampled.
Sweep: what the eight default settings of `compare` take with shared statistics, against one of them alone, on the 30
clips of three frames of camvid/calib at 360x480.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import calibration_clips, camvid, ddrnet, machine, parser, write
from forward import drifting
from rich.console import Console
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, revert
from resq_plugin.calibration import Collector, FullMapComparison, Statistics, candidate_ranges
from resq_plugin.comparison import DEFAULT_SETTINGS, expand
from resq_plugin.method import executing, residual_layers

PRECISION = "W8A8->W4A4"
SAMPLES = 64


def high_water() -> float:
    """Highest resident memory since the last `reset_high_water`, in bytes (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024.0 * int(found.group(1)) if found else 0.0


def reset_high_water() -> float:
    """Forget the peak and return the resident memory of now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return high_water()


def naive_seconds(net: nn.Module, frame: Tensor) -> float:
    """What the naive way takes: r candidates, each a full forward, for c keyframes and c residuals."""
    net(frame)
    start = time.perf_counter()
    net(frame)
    return (time.perf_counter() - start) * 20 * SAMPLES * 2


@torch.no_grad()
def excess_losses(model: nn.Module, clips: list[list[Tensor]], found: dict[str, dict[str, float]]) -> list[float]:
    """Loss of the ranges found over that of the best candidate, minus 1, for every quantizer."""
    layers = residual_layers(model)
    config = next(iter(layers.values())).settings.config
    collector = Collector(layers, config)
    with executing(collector):
        for clip in clips:
            for position, frame in enumerate(clip):
                collector.start_frame(position)
                model(frame)
            collector.end_clip()
    everything: dict[str, dict[str, dict[float, float]]] = {}
    for name, samples in collector.samples.items():
        everything[name] = {}
        for quantizer, chosen in found[name].items():
            bounds = samples.keyframe_range if quantizer == "keyframe" else samples.residual_range
            candidates = candidate_ranges(*bounds, config.calibration.candidates)
            everything[name][quantizer] = dict.fromkeys([*candidates, chosen], 0.0)
    comparison = FullMapComparison(config, everything, collector.samples)
    with executing(comparison):
        for clip in clips:
            for frame in clip[1:]:
                for position, shown in enumerate((clip[0], frame)):
                    comparison.start_frame(position)
                    model(shown)
                    comparison.end_frame()
    excess = []
    for name, quantizers in comparison.finalists.items():
        for quantizer, losses in quantizers.items():
            best, ours = min(losses.values()), losses[found[name][quantizer]]
            excess.append(ours / best - 1 if best else 0.0)
    return excess


def ranges_of(model: nn.Module) -> dict[str, dict[str, float]]:
    """Half range of every quantizer of every layer."""
    return {
        name: {key: quantizer.range[1] for key, quantizer in layer.activation_quantizers().items()}
        for name, layer in residual_layers(model).items()
    }


def sweep_seconds(weights: Path, data: Path, say: Callable[[str], object]) -> dict[str, Any]:
    """Processor time to calibrate one setting, and eight with shared statistics."""
    net, clips = ddrnet(weights), calibration_clips(camvid(data, "calib")[0], step=1)

    def calibration(config: ResQConfig, shared: Statistics | None = None) -> float:
        convert(net, config, example=clips[0][0])
        start = time.process_time()
        calibrate(net, clips, statistics=shared)
        seconds = time.process_time() - start
        revert(net)
        say(f"calibration of {config.notation}, {'shared' if shared else 'alone'}: {seconds:.1f} s")
        return seconds

    configs = [setting.config for setting in expand(DEFAULT_SETTINGS) if setting.config is not None]
    order = sorted(configs, key=lambda config: config.residual is None)  # as `compare` takes them
    alone, shared = calibration(ResQConfig.parse(PRECISION)), Statistics()
    each = [calibration(config, shared) for config in order]
    return {
        "clips": len(clips),
        "one": PRECISION,
        "seconds_of_one": round(alone, 1),
        "settings": [config.notation for config in order],
        "seconds_of_each": [round(seconds, 1) for seconds in each],
        "seconds_of_eight": round(sum(each), 1),
        "ratio": round(sum(each) / alone, 2),
    }


def main() -> None:
    """Print and write the figures."""
    options = parser(__doc__, "calibration.json")
    options.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    options.add_argument("--quality", type=int, default=0, metavar="CLIPS", help="clips for the exhaustive search")
    options.add_argument("--sweep", action="store_true", help="only measure eight settings against one")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    weights = args.data / "weights" / "ddrnet23slim_camvid.pth"
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    if args.sweep:
        found = sweep_seconds(weights, args.data, console.print)
        write(args.out, {**kept, "sweep": {**found, "machine": machine()}})
        console.print(
            f"processor time of {len(found['settings'])} calibrations: {found['ratio']} times that of {PRECISION}"
        )
        return
    net = ddrnet(weights)
    clips = calibration_clips(drifting(SAMPLES + 3, *args.size))[: SAMPLES // 2]
    with torch.inference_mode():
        naive = naive_seconds(net, clips[0][0])
    model = convert(net, PRECISION)
    before = reset_high_water()
    start = time.perf_counter()
    calibrate(model, clips, progress=True)
    seconds, memory = time.perf_counter() - start, high_water() - before
    result: dict[str, Any] = {"precision": PRECISION, "size": args.size, "samples": SAMPLES, "candidates": 20}
    result |= {"seconds": round(seconds, 1), "extra_gigabytes": round(memory / 1e9, 2), "machine": machine()}
    result["naive_seconds_estimate"] = round(naive)
    figures = f"{seconds:.0f} s (target 60), {memory / 1e9:.2f} GB extra (target 4), the naive way {naive:.0f} s"
    console.print(f"calibration: {figures}")
    if args.quality:
        frames, _ = camvid(args.data, "calib")
        clips = calibration_clips(frames)[: args.quality]
        model = convert(ddrnet(weights), ResQConfig.parse(PRECISION))
        calibrate(model, clips)
        excess = excess_losses(model, clips, ranges_of(model))
        over = sum(value > 0.01 for value in excess)
        result["quality"] = {"clips": args.quality, "quantizers": len(excess), "over_1_percent": over}
        result["quality"] |= {"median_excess": statistics.median(excess), "largest_excess": max(excess)}
        console.print(
            f"loss over the exhaustive search's: median {statistics.median(excess):.3%}, largest {max(excess):.2%}, "
            f"{over} of {len(excess)} quantizers above 1 %"
        )
    write(args.out, {**result, **{key: kept[key] for key in ("sweep",) if key in kept}})


if __name__ == "__main__":
    main()
