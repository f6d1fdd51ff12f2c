"""What the numbers of a report were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import resq_plugin

__all__ = ["describe_machine"]


def describe_machine() -> dict[str, str]:
    """Return processor, load and versions, as a reader needs them to judge a measured time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    values = {
        "Processor": f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads used",
        "System": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "resq-plugin": resq_plugin.__version__,
    }
    if hasattr(os, "getloadavg"):
        values["Load (1, 5, 15 min)"] = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return values


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
