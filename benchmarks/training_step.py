"""Time and memory of a training step through time against float training of the same net on the same frames.

A step is forward and backward of an interval of T frames with frozen batch norms, everything in one process and in
turn. Time is that of the processor, so that other programs do not count; memory is the peak of the step above what
was resident before it (Linux).

    uv run --group dev python benchmarks/training_step.py --threads 1
"""

from __future__ import annotations

import copy
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import ddrnet, machine, parser, write
from forward import drifting
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.training import TrainConfig, one_step, prepare_ranges, unroll

PRECISION = "W4A4->W3A3"


def resident(key: str) -> int:
    """Memory of this process in bytes: ``VmRSS`` now, or ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def peak(step: Callable[[], None]) -> int:
    """Bytes that a step takes at its peak."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def main() -> None:
    """Print and write times and memory."""
    options = parser(__doc__, "training_step.json")
    options.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    options.add_argument("--repeats", type=int, default=5)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    frames = [frame.to(memory_format=torch.channels_last) for frame in drifting(8, *args.size)]
    net = ddrnet(args.data / "weights" / "ddrnet23slim_camvid.pth").to(memory_format=torch.channels_last)
    model = convert(copy.deepcopy(net), ResQConfig.parse(PRECISION, weights="channel", calibration={"samples": 2}))
    calibrate(model, [frames[:3]])
    prepare_ranges(model, TrainConfig())

    def floating(interval: int) -> None:
        finish(net, [net(frame) for frame in frames[:interval]])

    def through_time(interval: int, checkpointing: bool) -> None:
        with one_step(model):
            finish(model, list(unroll(model, frames[:interval], checkpointing=checkpointing)))

    def finish(trained: nn.Module, outputs: list[Any]) -> None:
        scores: list[Tensor] = [output[0] if isinstance(output, tuple) else output for output in outputs]
        torch.stack([score.square().mean() for score in scores]).mean().backward()
        trained.zero_grad(set_to_none=True)

    steps: dict[str, Callable[[], None]] = {
        "float, T = 3": lambda: floating(3),
        "ResQ, T = 3": lambda: through_time(3, False),
        "ResQ, T = 3, checkpointing": lambda: through_time(3, True),
        "ResQ, T = 8, checkpointing": lambda: through_time(8, True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(args.repeats + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if repeat:
                times[name].append(time.process_time() - start)
    memory = {name: min(peak(step) for _ in range(2)) for name, step in steps.items()}
    base, base_memory = statistics.median(times["float, T = 3"]), memory["ResQ, T = 3"]
    rows = [
        {
            "step": name,
            "median_ms": round(1e3 * statistics.median(values), 1),
            "times_float": round(statistics.median(values) / base, 2),
            "peak_mb": round(memory[name] / 1e6, 1),
            "times_memory_of_t3": round(memory[name] / base_memory, 2),
        }
        for name, values in times.items()
    ]
    table = Table("step", "median ms", "x float", "peak MB", "x memory of ResQ, T = 3")
    for row in rows:
        table.add_row(*[str(value) for value in row.values()])
    Console().print(table)
    targets = {"times_float": 2.2, "times_float_checkpointing": 2.6, "memory_t8_checkpointing": 1.5}
    values = {"net": "DDRNet-23-slim", "precision": PRECISION, "size": args.size, "batch": 1, "targets": targets}
    write(args.out, {**values, "machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
