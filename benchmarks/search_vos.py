"""The small STM on DAVIS-2016 for `search.py --task vos`, searched on three, verified on a fourth, J on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, require
from resq_vos.calibration import record_clips, step_runner
from resq_vos.cost import quantized_only, vos_cost
from resq_vos.davis import DavisSequence, find_sequences, read_frame
from resq_vos.evaluation import follow, score, summarize_scores
from resq_vos.metrics import jaccard
from resq_vos.searching import LabelledFrame, labelled, score_runner, tracking_loop
from resq_vos.stm import FLOAT_LAYERS, load_stm
from torch import Tensor
from vos import MEASURED as EVERY
from vos import SHAPE

from resq_plugin import ResQConfig, Target, calibrate, convert, revert, search, stream
from resq_plugin.planning import Point, SearchResult

SEARCHED = ("camel", "goat", "parkour")
HELD_OUT = "scooter-black"
MEASURED = ("blackswan", "car-shadow", "dog")
FRAMES = 25
"""Of each sequence that is measured, as in rows of vos.json."""
LENGTH = 6
TARGET = Target(
    weight_bits=(4, 6, 8),
    activation_bits=(4, 6, 8),
    thresholds=(0.03, 0.1, 0.2),
    intervals=(3, LENGTH),
    references=("running",),
    weights=("channel",),
    grids=("unsigned",),
)
COMMON = {"exclude": FLOAT_LAYERS, "calibration": {"samples": 24, "positions": 8192}}
UNIFORM = ("W8A8", "W8A8->W4A4")
MOST = 3.0
"""Points of J lost on the held-out video by plans that are measured, from the fewest bit operations on."""


class MaskJ:
    """Mean J of masks (1, H, W), in percent."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take the masks of a frame."""
        self.values.append(jaccard(prediction[0].numpy() > 0, target[0].numpy() > 0))

    def compute(self) -> float:
        """Return the mean."""
        return 100 * float(np.mean(self.values))


class Bench:
    """The net, its clips, and what the file holds of this task."""

    def __init__(self, args: Any, save: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> None:
        self.args, self.save, self.values = args, save, {"rows": [], **values}
        what = f"DAVIS-2016, {FRAMES} frames each of {', '.join(MEASURED)}, 427x240"
        self.values |= {"data": what, "machine": machine()}
        self.root = require(args.data / "davis2016")
        self.model = load_stm(require(args.data / "weights" / "stm_small.pth"))
        self.model.to(memory_format=torch.channels_last)

    def clips(self, *names: str) -> list[Any]:
        """Steps of a float run, a clip of each sequence."""
        return [clip for name in names for clip in self.clip(name)]

    def clip(self, name: str) -> list[Any]:
        """Steps of a float run over a sequence."""
        (sequence,) = find_sequences(self.root, [name], year=2016)
        first = torch.from_numpy(sequence.labels(0).astype(np.int64))
        frames = (read_frame(path) for path in sequence.frames)
        return record_clips(self.model, frames, first, length=LENGTH, clips=1)

    def video(self, name: str) -> tuple[list[LabelledFrame], list[Tensor]]:
        """Frames of a sequence, the first with its labels, and the right masks (1, H, W)."""
        (sequence,) = find_sequences(self.root, [name], year=2016)
        first = torch.from_numpy(sequence.labels(0).astype(np.int64))
        frames = [read_frame(path) for path in sequence.frames[:FRAMES]]
        return labelled(frames, first), [self.mask(sequence, index) for index in range(len(frames))]

    def mask(self, sequence: DavisSequence, index: int) -> Tensor:
        """The right mask (1, H, W) at the resolution of the network."""
        right = torch.from_numpy((sequence.labels(index) > 0).astype(np.float32))
        return F.interpolate(right[None, None], SHAPE[-2:], mode="area")[0] >= 0.5

    def search(self) -> SearchResult:
        """Search, or read what was found."""
        clips = self.clips(*SEARCHED)
        held_out, labels = self.video(HELD_OUT)
        clock = time.process_time()
        with torch.enable_grad():
            found = search(
                self.model,
                clips,
                max_drop=1.0,
                target=TARGET,
                held_out=[held_out],
                labels=[labels],
                metric=("J", MaskJ),
                predict=lambda scores: scores.argmax(1),
                agreement=MaskJ,
                run=score_runner(self.model),
                loop=tracking_loop(self.model),
                criterion="kl",
                points=10,
                folder=self.args.runs / "vos",
                **COMMON,
            )
        self.values["seconds"] = self.values.get("seconds", 0) + time.process_time() - clock
        self.values |= {"front": found.rows(), "notes": found.notes}
        self.save(self.values)
        print(found, flush=True)
        return found

    def quantized(self, shares: Any) -> float:
        """GBOPs per frame of the layers that are converted, of the model as it is or of W8A8."""
        config = ResQConfig.parse("W8A8", exclude=FLOAT_LAYERS) if shares is None else None
        cost = vos_cost(self.model, SHAPE, config, shares=shares or None)
        return quantized_only(cost).bops_per_frame / 1e9

    def measure(
        self,
        label: str,
        config: ResQConfig | None,
        point: Point | None = None,
        sequences: Sequence[str] = MEASURED,
    ) -> None:
        """Measure one configuration on other sequences, unless that is done."""
        kept = None if config is None else config.to_dict()
        if any(row["setting"] == label and row["config"] == kept for row in self.values["rows"]):
            return
        row: dict[str, Any] = {"setting": label, "precision": "float", "interval": 1, "config": kept}
        if config is None:
            row |= self.scores(None, sequences)
        else:
            base = self.quantized(None)
            convert(self.model, config)
            try:
                clips = self.clips(*SEARCHED, HELD_OUT)
                calibrate(self.model, clips, run=step_runner(self.model))
                row |= {"precision": config.notation}
                if config.residual is None:
                    row |= self.scores(None, sequences)
                    gbops = self.quantized({})
                else:
                    with stream(self.model) as video:
                        row |= self.scores(video, sequences) | {"interval": config.interval}
                        gbops = self.quantized(video.bit_shares())
                row |= {"gbops_per_frame": gbops, "relative_bops": gbops / base}
            finally:
                revert(self.model)
            row["held_out_drop"] = None if point is None or point.verified is None else point.verified.drop
        self.values["rows"] = [old for old in self.values["rows"] if old["setting"] != label] + [row]
        self.save(self.values)
        print(label, f"{row['j']:.2f} J", row.get("relative_bops"), flush=True)

    def scores(self, video: Any, sequences: Sequence[str]) -> dict[str, Any]:
        """J of sequences, in percent, and by distance from the keyframe."""
        found = []
        for sequence in find_sequences(self.root, sequences, year=2016):
            labels, positions = zip(*follow(self.model, sequence, video=video, frames=FRAMES), strict=True)
            targets = [sequence.labels(t) for t in range(len(labels))]
            found.append(score(sequence.name, (1,), labels, targets, positions))
        result = summarize_scores(found)
        return {"j": result["J"], "j_by_distance": result["by_distance"]["J"]}


def run(args: Any, save: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> dict[str, Any]:
    """Search on three sequences, verify on a fourth, and measure plans of the front on others.

    Args:
        args: of the command line.
        save: writes what is known of this task.
        values: what the file holds of it.
    """
    torch.set_grad_enabled(False)
    bench = Bench(args, save, values)
    bench.measure("float", None)
    for precision in UNIFORM:
        bench.measure(f"uniform {precision}", ResQConfig.parse(precision, weights="channel", **COMMON))
    found = bench.search()
    points = [point for point in found.front if point.verified is not None and point.verified.drop <= MOST]
    for point in points[: args.plans]:
        label = f"search, T = {point.config.interval}, {point.verified.drop:.2f} points lost on held-out frames"
        bench.measure(label, point.config, point)
    bench.measure("float, 12 sequences", None, sequences=EVERY)
    chosen = found.plan.point
    bench.measure("the plan, 12 sequences", chosen.config, chosen, EVERY)
    return bench.values
