"""Endurance: one stream for ten thousand frames, and eight streams on eight threads.

The long stream has the running reference and never a second keyframe, so whatever drifts or leaks has time to show:

* memory: resident memory at the end against that after the first tenth;
* drift: the output against that of a stream started ten frames before, both against the float output, in steps of an
  8-bit grid over the float output (LSB) and as the share of pixels of the same class;
* threads: eight streams of one model on eight threads against eight streams one after the other, bit for bit.

    uv run --group dev python benchmarks/soak.py                # 10000 frames, about three minutes on 2 free cores
    uv run --group dev python benchmarks/soak.py --frames 500   # a short run
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import machine, parser, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, dense_execution, stream
from resq_plugin.demo import SceneConfig, generate_clip, load_demo_net

SIZE = 48, 72
SCENE = 60
"""Frames of a scene, which is played forwards and backwards for as long as it takes."""
STREAMS, SHARE = 8, 80
"""A thread runs one frame for 80 of the long stream."""
CHUNK = 25
"""Frames that threads run between two comparisons."""
FRESH = 10
"""Frames that a fresh stream is old when it is compared."""
MEMORY_LIMIT, DRIFT_LIMIT = 8.0, 1.25
"""Largest growth in MB, and largest error of the long stream over that of the fresh one."""


def resident() -> float:
    """Resident memory in MB (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0


def scene(seed: int) -> Callable[[int], Tensor]:
    """Return an endless video as a function of time, frames (1, 3, H, W)."""
    config = SceneConfig(height=SIZE[0], width=SIZE[1], seed=seed, camera="pan" if seed % 2 else "still")
    clip, _ = generate_clip(config, SCENE)

    def frame(t: int) -> Tensor:
        step = t % (2 * SCENE - 2)
        return clip[min(step, 2 * SCENE - 2 - step)].unsqueeze(0)

    return frame


def prepare(precision: str) -> nn.Module:
    """Return the demo net, converted and calibrated."""
    model = convert(load_demo_net(), ResQConfig.parse(precision, reference="running", interval=8))
    frames = [scene(seed) for seed in range(100, 104)]
    calibrate(model, [[frame(t) for t in range(3)] for frame in frames])
    return model


def compare(model: nn.Module, frame: Callable[[int], Tensor], t: int, found: Tensor) -> dict[str, float]:
    """Measure the long stream's output at time t, and that of a fresh stream, against the float output."""
    with dense_execution():
        exact = model(frame(t))
    with stream(model, interval=10**9) as video:
        fresh = [video(frame(time)) for time in range(t - FRESH, t + 1)][-1]
    step = 2 * float(exact.abs().max()) / 255
    row: dict[str, float] = {"frame": t}
    for name, output in (("long", found), ("fresh", fresh)):
        row[f"{name}_lsb"] = float((output - exact).abs().mean()) / step
        row[f"{name}_agreement"] = 100 * float((output.argmax(1) == exact.argmax(1)).double().mean())
    row["between_lsb"] = float((found - fresh).abs().mean()) / step
    row["between_agreement"] = 100 * float((found.argmax(1) == fresh.argmax(1)).double().mean())
    return row


@torch.inference_mode()
def endure(model: nn.Module, frames: int, console: Console) -> dict[str, Any]:
    """Run one stream without a second keyframe; sample memory a hundred times and compare ten times."""
    frame, memory, drift, state = scene(1), [], [], set()
    with stream(model, interval=10**9) as video:
        for t in range(frames):
            output = video(frame(t))
            if (t + 1) % max(1, frames // 100) == 0:
                memory.append(resident())
                state.add(video.state_bytes())
            if (t + 1) % max(1, frames // 10) == 0 and t >= FRESH:
                drift.append(compare(model, frame, t, output))
                console.log(f"{t + 1} frames, {memory[-1]:.0f} MB, {drift[-1]['long_lsb']:.2f} LSB from float")
    tenth = max(1, len(memory) // 10)
    growth = statistics.median(memory[-tenth:]) - statistics.median(memory[tenth : 2 * tenth])
    memory = [round(value, 1) for value in memory]
    return {"memory_mb": memory, "growth_mb": round(growth, 1), "state_bytes": sorted(state), "drift": drift}


def threads(model: nn.Module, frames: int) -> dict[str, Any]:
    """Run eight videos one after the other and on eight threads, and compare all outputs."""
    scenes = [scene(seed) for seed in range(STREAMS)]

    @torch.inference_mode()
    def play(video: Any, frame: Callable[[int], Tensor], times: range) -> list[Tensor]:
        return [video(frame(t)) for t in times]

    serial, parallel = ([stream(model) for _ in scenes] for _ in range(2))
    seconds, equal = {"serial": 0.0, "threads": 0.0}, True
    with ThreadPoolExecutor(STREAMS) as pool:
        for start in range(0, frames, CHUNK):
            times = [range(start, min(start + CHUNK, frames))] * STREAMS
            begin = time.perf_counter()
            expected = list(map(play, serial, scenes, times))
            middle = time.perf_counter()
            found = list(pool.map(play, parallel, scenes, times))
            seconds["serial"] += middle - begin
            seconds["threads"] += time.perf_counter() - middle
            for ours, theirs in zip(found, expected, strict=True):
                equal &= all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return {"streams": STREAMS, "frames_each": frames, "equal": equal, "seconds": seconds}


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the figures."""
    table = Table("frame", "long: LSB", "fresh: LSB", "apart: LSB", "long: % as float", "fresh: %", "as each other: %")
    keys = ("long_lsb", "fresh_lsb", "between_lsb", "long_agreement", "fresh_agreement", "between_agreement")
    for row in result["drift"]:
        table.add_row(str(row["frame"]), *(f"{row[key]:.2f}" for key in keys))
    console.print(table)
    console.print(f"memory grew by {result['growth_mb']:.1f} MB (at most {MEMORY_LIMIT:.0f})")
    console.print(f"error of the long stream over a fresh one's: {result['drift_ratio']:.3f} (at most {DRIFT_LIMIT})")
    console.print(f"eight threads equal eight serial streams: {result['threads']['equal']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print and write the figures; the exit code is 1 when one of them is beyond its limit."""
    options = parser(__doc__, "soak.json")
    options.add_argument("--frames", type=int, default=10_000, help="frames of the long stream (default: %(default)s)")
    options.add_argument("--precision", default="W8A8->W8A{0,4,8}", help="default: %(default)s")
    options.set_defaults(threads=1)
    args = options.parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console()
    start = time.perf_counter()
    model = prepare(args.precision)
    result: dict[str, Any] = {"net": "DemoNet", "size": SIZE, "precision": args.precision, "frames": args.frames}
    result |= endure(model, args.frames, console)
    long, fresh = (statistics.mean(row[f"{name}_lsb"] for row in result["drift"]) for name in ("long", "fresh"))
    result |= {"drift_ratio": long / fresh, "threads": threads(model, max(2, args.frames // SHARE))}
    flat, steady = result["growth_mb"] <= MEMORY_LIMIT, result["drift_ratio"] <= DRIFT_LIMIT
    result["ok"] = flat and steady and result["threads"]["equal"] and len(result["state_bytes"]) == 1
    result |= {"seconds": round(time.perf_counter() - start, 1), "machine": machine()}
    show(console, result)
    write(args.out, result)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
