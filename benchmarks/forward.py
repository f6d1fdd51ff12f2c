"""Time of the simulation: keyframe, residual and dynamic forward against the float forward of the same net.

All variants run in turn in one process, so that the ratios hold when the machine's speed drifts.

    uv run --group dev python benchmarks/forward.py
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import ddrnet, machine, parser, write
from rich.console import Console
from rich.table import Table

from resq_plugin import ResQConfig, calibrate, convert, stream

STATIC, DYNAMIC = "W8A8->W4A4", "W8A8->W4A{0,4,8}"
TARGETS = {"keyframe": 1.5, "residual": 1.6, "dynamic": 2.2, "residual, compiled": 1.3}


def drifting(frames: int, height: int, width: int) -> list[torch.Tensor]:
    """Return a smooth noisy scene that moves two pixels a frame, frames (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, height // 16, width // 16 + 4, generator=generator)
    scene = torch.nn.functional.interpolate(coarse, size=(height, width + 2 * frames), mode="bilinear")
    noise = 0.03 * torch.randn(frames, 3, height, width, generator=generator)
    return [scene[..., 2 * t : 2 * t + width] + noise[t] for t in range(frames)]


def main() -> None:
    """Print and write the ratios."""
    options = parser(__doc__, "forward.json")
    options.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    options.add_argument("--repeats", type=int, default=15)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    frames = drifting(3, *args.size)
    net = ddrnet(args.data / "weights" / "ddrnet23slim_camvid.pth")
    runs: dict[str, Callable[[], Any]] = {"float": lambda: net(frames[1])}
    videos = []
    for label, precision, compiled in (
        ("residual", STATIC, False),
        ("dynamic", DYNAMIC, False),
        ("residual, compiled", STATIC, True),
        ("dynamic, compiled", DYNAMIC, True),
    ):
        config = ResQConfig.parse(precision, compile=compiled, interval=10**9, calibration={"samples": 2})
        model = convert(copy.deepcopy(net), config)
        calibrate(model, [frames])
        video = stream(model)
        videos.append(video)
        if label == "residual":
            first = stream(model, interval=1)
            runs["keyframe"] = lambda first=first: first(frames[0])
        runs[label] = lambda video=video: video(frames[1])
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for video in videos:
            video(frames[0])
            video(frames[1])
        for repeat in range(args.repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat:
                    times[name].append(time.perf_counter() - start)
    rows = []
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, times["float"], strict=True)]
        row = {"forward": name, "median_ms": 1e3 * statistics.median(values), "ratio": statistics.median(ratios)}
        rows.append({**row, "target": TARGETS.get(name)})
    table = Table("forward", "median ms", "x float", "target")
    for row in rows:
        table.add_row(row["forward"], f"{row['median_ms']:.0f}", f"{row['ratio']:.2f}", str(row["target"] or ""))
    Console().print(table)
    write(args.out, {"net": "DDRNet-23-slim", "size": args.size, "machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
