"""When keyframes come on video that stands still and moves in turn: where the residual says so, against fixed T.

DDRNet-23-slim with the settings of `keyframes.py`, T at most 16, agreement with the float model in % of pixels.

* A drive that stops, *synthetic*: camvid/val, moving for 12 frames, standing for 16, twice, and moving for 12. While
  it stands the same frame comes again with fresh noise of 2 levels of 255, as of a sensor. 320x240, ranges from
  camvid/calib.
* A woman and a dog, *real*: a fixed camera, in front of which somebody stands, and a dog runs and is away; every fifth
  frame, 320x192. The first half gives the ranges, the second is measured.

A threshold is taken from the measured video itself, which is more favourable than any calibration, or from video that
a user calibrates on: the first 20 frames of camvid/calib, which do not stop, or the first half. Always it is the one
whose average bit operations come nearest to those of the fixed T on the video that it is taken from. The fixed T of
equal bit operations, or of equal agreement, is read off the line through T = 1 to 16 on the measured video.

    uv run --group dev python benchmarks/stop_and_go.py --runs FOLDER --threads 1  # 1900 frames; resumes
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import MEAN, STD, camvid, ddrnet, machine, parser, require, write
from intervals import SIGNALS, Film, Frame, converted, drift, matched, play
from torch import Tensor

from resq_plugin.video import read

LONGEST = 16
INTERVALS = (4, 8, 12)
SIZE = (240, 320)
NOISE = 2.0
"""Standard deviation in levels of 255."""
STOPS = {11: 16, 23: 16}
"""Frames of val at which the drive stops, and for how many frames."""
ITSELF = "the measured video itself"


def stopping(frames: Sequence[Tensor], stops: dict[int, int]) -> list[Tensor]:
    """Let a drive stop: a frame comes again so many times, with fresh noise."""
    generator = np.random.default_rng(0)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    found = []
    for index, frame in enumerate(frames):
        found.append(frame)
        for _ in range(stops.get(index, 0)):
            pixels = frame.numpy() * std + mean
            pixels = np.clip(np.round(pixels + generator.normal(0, NOISE, pixels.shape)), 0, 255)
            found.append(torch.from_numpy((pixels - mean) / std).float())
    return found


class Bench:
    """The network, and films that ran so far."""

    def __init__(self, args: Any) -> None:
        self.args = args

    def film(self, name: str, frames: Sequence[Tensor], clips: list[Sequence[Tensor]], ranges: str) -> Film:
        """A film of its own ranges."""
        self.args.runs.mkdir(parents=True, exist_ok=True)
        network = ddrnet(require(self.args.data / "weights" / "ddrnet23slim_camvid.pth"))
        network = converted(network, LONGEST, clips, self.args.runs / f"{ranges}.pt")
        return Film(network, list(frames), None, LONGEST, self.args.runs / name)

    def drive(self, split: str, *, stops: bool) -> list[list[Frame]]:
        """Intervals of a split of CamVid."""
        calib, frames = (
            [F.interpolate(frame, SIZE, mode="bilinear", antialias=True) for frame in camvid(self.args.data, name)[0]]
            for name in ("calib", split)
        )
        frames = stopping(frames, STOPS) if stops else frames[:20]
        return self.film(f"{split}_stops" if stops else split, frames, [calib[:16], calib[16:]], "camvid").intervals()

    def people(self, half: int) -> list[list[Frame]]:
        """Intervals of a half of the real video."""
        path = require(self.args.data / "video_people" / "woman_dog_sam2.mp4")
        frames = list(read(path, size=(192, 320), mean=MEAN, std=STD)[::5])
        middle = len(frames) // 2
        halves, calib = (frames[:middle], frames[middle:]), frames[:middle]
        clips = [calib[start : start + 16] for start in range(0, middle - 15, 16)]
        return self.film(f"people{half}", halves[half], clips, "people").intervals()


def at_equal(line: list[dict[str, Any]], found: dict[str, Any]) -> tuple[float, float]:
    """Points of agreement more than a fixed T of equal BOPs, and the share of BOPs less than one of equal agreement.

    The line goes through all fixed T from the fewest bit operations on; one that has less agreement than a cheaper one
    is not taken. NaN where the line does not reach.
    """
    bops, agreement = [], []
    for fixed in sorted(line, key=lambda row: row["relative_bops"]):
        if not agreement or fixed["agreement"] > agreement[-1]:
            bops.append(fixed["relative_bops"])
            agreement.append(fixed["agreement"])
    gain = found["agreement"] - float(np.interp(found["relative_bops"], bops, agreement, left=np.nan))
    saved = 1 - found["relative_bops"] / float(
        np.interp(found["agreement"], agreement, bops, left=np.nan, right=np.nan)
    )
    return gain, saved


def compare(video: str, measured: list[list[Frame]], sources: dict[str, list[list[Frame]]]) -> list[dict[str, Any]]:
    """Rows of one measured video: every signal, with thresholds of every source."""
    line = [play(measured, interval) for interval in range(1, LONGEST + 1)]
    rows = [{"video": video, "source": "", "T": interval, **row} for interval, row in enumerate(line, 1)]
    for source, intervals in sources.items():
        for interval in INTERVALS:
            bops = play(intervals, interval)["relative_bops"]
            for signal in SIGNALS:
                level = matched(intervals, signal, bops, LONGEST)
                found = drift(measured, signal, level, LONGEST)
                gain, saved = at_equal(line, found)
                more = {"threshold": level, "gain": round(gain, 4), "saved": round(saved, 4)}
                rows.append({"video": video, "source": source, "T": interval, **found, **more})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/time.md: agreement and BOPs, what is gained at equal BOPs and saved at equal agreement."""
    heads = " | ".join(f"T = {interval}" for interval in INTERVALS)
    lines = [
        f"| video | threshold of | keyframe after a frame of high | {heads} |",
        "|---|---|---|" + "---|" * len(INTERVALS),
    ]
    groups: dict[tuple[str, str, str], dict[float, dict[str, Any]]] = {}
    for found in rows:
        groups.setdefault((found["video"], found["source"], found["schedule"]), {})[found["T"]] = found
    for (video, source, signal), group in groups.items():
        name = SIGNALS.get(signal, "nothing: fixed T")
        cells = " | ".join(_cell(group[interval]) for interval in INTERVALS)
        lines.append(f"| {video} | {source or '–'} | {name} | {cells} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    cell = f"{100 * found['relative_bops']:.1f} / {found['agreement']:.2f}"
    if "gain" not in found:
        return cell
    gain, saved = found["gain"], found["saved"]
    return f"{cell} / {'–' if gain is None else f'{gain:+.2f}'} / {'–' if saved is None else f'{100 * saved:+.0f} %'}"


def main() -> None:
    """Run what has not run yet."""
    options = parser(__doc__, "stop_and_go.json")
    options.add_argument("--runs", type=Path, required=True, help="folder of what ran")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    stops = bench.drive("val", stops=True)
    drives = {ITSELF: stops, "camvid/calib": bench.drive("calib", stops=False)}
    people = bench.people(1)
    rows = compare("a drive that stops", stops, drives)
    rows += compare("a woman and a dog", people, {ITSELF: people, "its first half": bench.people(0)})
    data = "CamVid 320x240, standing in turn (synthetic); woman_dog_sam2.mp4, 320x192, 6 Hz"
    write(args.out, {"data": data, "machine": machine(), "signals": SIGNALS, "rows": rows})
    print(table(json.loads(args.out.read_text())["rows"]))


if __name__ == "__main__":
    main()
