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
from pathlib import Path
from typing import Any

import torch
from common import CLASSES, camvid, ddrnet, machine, parser, require, segment, write
from intervals import SIGNALS, Film, Frame, converted, drift, matched, play, row, row_of
from torch import nn

from resq_plugin import measure_cost, stream
from resq_plugin.evaluation import Agreement, MeanIoU

LONGEST = 17
BEGINS = (0, 2, 4, 6)
SPREAD = (4, 8, 16)
INTERVALS = (4, 8, 12)


class Bench:
    """The network, its video, and what ran so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        args.runs.mkdir(parents=True, exist_ok=True)
        self.val, self.labels = camvid(args.data, "val")
        self.film = Film(self.network(LONGEST), self.val, self.labels, LONGEST, args.runs)
        self.values: dict[str, Any] = {"data": "CamVid val, 36 frames, 480x360", "machine": machine()}

    def network(self, interval: int, kind: str = "interval") -> nn.Module:
        """DDRNet-23-slim, converted and calibrated."""
        network = ddrnet(require(self.args.data / "weights" / "ddrnet23slim_camvid.pth"))
        frames, _ = camvid(self.args.data, "calib")
        return converted(network, interval, [frames[:16], frames[16:]], self.args.runs / "ranges.pt", kind)

    def spread(self, interval: int) -> dict[str, Any]:
        """Measure a spread keyframe in its steady state."""
        network = self.network(interval, "spread")
        scores, agreement = MeanIoU(CLASSES), Agreement()
        with torch.no_grad(), stream(network) as video:
            for start in BEGINS:
                video.reset()
                for index, frame in enumerate(self.val[start:], start):
                    labels = segment(video(frame))
                    if index >= interval + BEGINS[-1]:
                        scores.update(labels, self.labels[index])
                        agreement.update(labels, self.film.floats[index])
            cost = measure_cost(network, self.film.shape, shares=video.bit_shares())
        return row("spread", interval, agreement.compute(), scores.compute(), cost.bops_per_frame, cost.peak_bops)


def at_every_position(intervals: list[list[Frame]], interval: int) -> dict[str, Any]:
    """A fixed T on the frames that spread keyframes are measured on."""
    measured = range(interval + BEGINS[-1], len(intervals))
    frames = [intervals[index - t][t] for index in measured for t in range(interval)]
    return row_of("fixed", interval, frames)


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
    intervals = bench.film.intervals()
    rows = []
    for length in INTERVALS:
        fixed = play(intervals, length)
        rows.append(fixed)
        for signal in SIGNALS:
            level = matched(intervals, signal, fixed["relative_bops"], LONGEST)
            rows.append(drift(intervals, signal, level, LONGEST))
    bench.values |= {"signals": SIGNALS, "drift": rows}
    rows = []
    for length in SPREAD:
        rows.append(at_every_position(intervals, length))
        file = args.runs / f"spread{length}.json"
        if not file.exists():
            write(file, bench.spread(length))
        found = json.loads(file.read_text())
        base = bench.film.cost.bops_keyframe
        rows.append({**found, **{key: found[key] / base for key in ("relative_bops", "relative_peak")}})
    write(args.out, {**bench.values, "spread": rows})
    print(spread_table(rows), drift_table(bench.values["drift"]), sep="\n\n")


if __name__ == "__main__":
    main()
