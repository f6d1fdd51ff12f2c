"""Bytes between frames against accuracy on real driving video: DDRNet-23-slim on CamVid, x_k and z_k in fewer bits.

Two settings, the uniform one of `camvid.py` and a plan of `search.py`, each with floats and with integers of 8 or 16
bits (`StateConfig`). Calibration, frames and protocol are theirs: every frame of camvid/val at every position t <= T.
Bytes are those that a stream holds, those that `measure_cost` counts, and those of floats that nobody shares: 4 for
every element that a layer reads or returns. In the plan, layers whose residual precision is that of their keyframes
keep nothing, as their residuals save no bit operation.

    uv run --group dev python benchmarks/state.py [--only plan]    # resumes where it stopped
"""

from __future__ import annotations

import json
from typing import Any

import torch
from common import ROOT, accuracy, calibration_clips, camvid, ddrnet, machine, parser, require, write
from rich.console import Console
from rich.table import Table

from resq_plugin import ResQConfig, calibrate, convert, measure_cost, revert, stream
from resq_plugin.calibration import Statistics
from resq_plugin.config import parse_precision

SHAPE = (1, 3, 360, 480)
UNIFORM, PLAN = "uniform W8A8->W4A{0,4,8}, T = 8", "plan of the search, T = 10"
CHOSEN = "search, T = 10, 0.46 points lost on held-out frames"
EIGHT = {"reference_bits": 8, "output_bits": 8}
STATES: dict[str, list[tuple[str, str, dict[str, Any], bool]]] = {
    # label, reference, state, whether layers without gain keep nothing
    PLAN: [
        ("8 bits, layers without gain keep none", "running", EIGHT, True),
        ("8 bits", "running", EIGHT, False),
        ("floats", "running", {}, False),
        ("16 bits", "running", {"reference_bits": 16, "output_bits": 16}, False),
    ],
    UNIFORM: [
        ("x on the keyframe's grid, z in 8 bits", "quantized", {"output_bits": 8}, False),
        ("8 bits", "float", EIGHT, False),
        ("floats", "float", {}, False),
        ("x on the keyframe's grid, z in floats", "quantized", {}, False),
        ("x on the keyframe's grid, z in 16 bits", "quantized", {"output_bits": 16}, False),
    ],
}


def base_of(setting: str) -> ResQConfig:
    """The configuration that a setting starts from."""
    if setting == UNIFORM:
        return ResQConfig.parse("W8A8->W4A{0,4,8}", interval=8)
    rows = json.loads((ROOT / "benchmarks" / "results" / "search.json").read_text())["rows"]
    return ResQConfig.from_dict(next(row["config"] for row in rows if row["setting"] == CHOSEN))


def without_gain(config: ResQConfig) -> list[str]:
    """Layers whose residual frames take as many bit operations as their keyframes."""
    pairs = {name: parse_precision(text) for name, text in config.overrides}
    return [name for name, (keyframe, residual) in pairs.items() if keyframe == residual]


class Bench:
    """The network, its data and the rows measured so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.network = ddrnet(require(args.data / "weights" / "ddrnet23slim_camvid.pth"))
        frames, _ = camvid(args.data, "calib")
        self.clips = {PLAN: [frames[:16], frames[16:]], UNIFORM: calibration_clips(frames)}
        self.val, annotations = camvid(args.data, "val")
        self.targets = {"mIoU": [annotations]}
        self.rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
        self.statistics = {setting: Statistics() for setting in self.clips}

    def measure(self, setting: str, label: str, config: ResQConfig) -> None:
        """Measure one way to keep state, unless that is done."""
        if any((row["setting"], row["state"]) == (setting, label) for row in self.rows):
            return
        convert(self.network, config, example=self.val[0])
        calibrate(self.network, self.clips[setting], statistics=self.statistics[setting])
        with torch.inference_mode(), stream(self.network) as video:
            video(self.val[0])
            kept = video.state_bytes()
        counted = measure_cost(self.network, SHAPE).state_bytes
        unshared = config.replace(reference="running", state={})  # of which every layer has its own
        floats = measure_cost(self.network, SHAPE, unshared).state_bytes
        result = accuracy(self.network, self.val, self.targets, config.interval)
        cost = measure_cost(self.network, SHAPE, **result.amortized())
        revert(self.network)
        self.rows.append(
            {
                "setting": setting,
                "state": label,
                "reference": config.reference,
                "miou": result.mean("mIoU"),
                "miou_by_distance": result.by_distance["mIoU"],
                "state_bytes": kept,
                "counted_bytes": counted,
                "unshared_float_bytes": floats,
                "gbops_per_frame": cost.bops_per_frame / 1e9,
            }
        )
        values = {"data": "CamVid val, 36 frames, 480x360, every position", "machine": machine(), "rows": self.rows}
        write(self.args.out, values)
        print(setting, label, f"{self.rows[-1]['miou']:.2f} mIoU, {kept / 1e6:.2f} MB", flush=True)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("setting", "state", "MB", "of unshared floats", "mIoU", "GBOPs")
    for row in rows:
        share = f"{100 * row['state_bytes'] / row['unshared_float_bytes']:.1f} %"
        numbers = f"{row['state_bytes'] / 1e6:.1f}", share, f"{row['miou']:.2f}", f"{row['gbops_per_frame']:.1f}"
        table.add_row(row["setting"], row["state"], *numbers)
    Console(width=140).print(table)


def main() -> None:
    """Measure what is not in the file yet."""
    options = parser(__doc__, "state.json")
    options.add_argument("--only", default="", help="settings whose name has this in it")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    for setting, states in STATES.items():
        for label, reference, state, drops in states if args.only in setting else []:
            base = base_of(setting)
            stateless = without_gain(base) if drops else []
            bench.measure(setting, label, base.replace(reference=reference, state={**state, "stateless": stateless}))
    show(bench.rows)


if __name__ == "__main__":
    main()
