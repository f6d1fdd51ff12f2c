"""Video object segmentation, the paper's third task: a small STM on DAVIS-2016, J, F and bit operations.

    uv run --group dev python benchmarks/vos.py                      # the main setting on every frame of 12 sequences
    uv run --group dev python benchmarks/vos.py --settings all --frames 25
    uv run --group dev python benchmarks/vos.py --camvid             # several objects: classes of CamVid val

The net is small (half-width ResNet-50 trunks, trained here on synthetic pairs, see train_stm.py) and its frames are at
half resolution: never set these numbers beside the paper's, which are of STM as published.

Ranges are calibrated on camel, goat, parkour and scooter-black; measured on the other 12 sequences that are at hand.
The file is written after each row and a second run measures what is missing. Ranges are kept in --scratch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, parser, require, write
from PIL import Image
from resq_vos.calibration import record_clips, step_runner
from resq_vos.cost import quantized_only, vos_cost
from resq_vos.davis import DavisSequence, find_sequences, read_frame
from resq_vos.evaluation import Scores, follow, score, summarize_scores
from resq_vos.metrics import jaccard
from resq_vos.propagation import Propagation
from resq_vos.stm import FLOAT_LAYERS, STM, load_stm
from rich.console import Console
from rich.table import Table

from resq_plugin import ResQConfig, calibrate, convert, revert, stream
from resq_plugin.method import residual_layers

CALIBRATION = ("camel", "goat", "parkour", "scooter-black")
MEASURED = (
    "blackswan", "bmx-trees", "breakdance", "car-roundabout", "car-shadow", "cows", "dance-twirl", "dog",
    "drift-straight", "horsejump-high", "paragliding-launch", "soapbox",
)  # fmt: skip
PRECISIONS = (
    ("frame", "W8A8", None),
    ("frame", "W4A8", None),
    ("frame", "W8A4", None),
    ("frame", "W4A4", None),
    ("resq", "W8A8->W4A8", None),
    ("resq", "W8A8->W8A4", None),
    ("resq", "W8A8->W4A4", None),
    ("dynamic", "W8A8->W8A{0,4,8}", 0.1),
)
SETTINGS = (("tensor", "symmetric"), ("channel", "symmetric"), ("tensor", "unsigned"), ("channel", "unsigned"))
"""Weights and keyframe grid; the first is the paper's."""
CAMVID = {"building": 1, "road": 3, "pavement": 4, "tree": 5, "car": 8}
"""Classes of CamVid that are followed as objects, five at once, through the 36 consecutive frames of val."""
CAMVID_PRECISIONS = ("W8A8", "W8A8->W4A8", "W8A8->W8A4")
INTERVAL = 3
SHAPE = (1, 3, 240, 427)
CLIPS = 4
"""Calibration clips of each sequence, of three steps, every tenth step one: 32 residual samples of four sequences."""
SEARCH = {"samples": 32, "positions": 2048, "recheck": 2}
"""Half of the defaults, because the search is repeated for every row."""


class Bench:
    """The float model, the data and the rows so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        logging.getLogger("resq_plugin").setLevel(logging.ERROR)
        root = require(args.data / "davis2016")
        self.args = args
        self.model: STM = load_stm(require(args.data / "weights" / "stm_small.pth"))
        self.model.to(memory_format=torch.channels_last)
        self.sequences = find_sequences(root, args.sequences, year=2016)
        self.calibration = find_sequences(root, CALIBRATION, year=2016)
        self.steps: list[Any] | None = None
        self.rows: list[dict[str, Any]] = []
        if args.out.exists() and not args.fresh:
            self.rows = json.loads(args.out.read_text())["rows"]
        args.scratch.mkdir(parents=True, exist_ok=True)

    def key(self, precision: str, weights: str, grid: str, threshold: float | None) -> dict[str, Any]:
        """What tells rows apart."""
        return {
            "precision": precision,
            "weights": weights,
            "keyframe_grid": grid,
            "threshold": threshold,
            "frames": self.args.frames,
            "measured_on": list(self.args.sequences),
        }

    def done(self, key: dict[str, Any]) -> bool:
        """Whether the file has that row."""
        return any(all(row[name] == value for name, value in key.items()) for row in self.rows)

    def clips(self) -> list[list[Any]]:
        """Steps of a float run over the calibration sequences."""
        if self.steps is None:
            self.steps = []
            for sequence in self.calibration:
                labels = torch.from_numpy(sequence.labels(0).astype(np.int64))
                frames = (read_frame(path) for path in sequence.frames)
                self.steps += record_clips(self.model, frames, labels, length=3, gap=7, clips=CLIPS)
        return self.steps

    def ranges(self, config: ResQConfig) -> None:
        """Set the ranges of a converted model: calibrate, or take those of an earlier run.

        The search looks at one quantizer at a time, so the ranges of a pool are those of its members: residuals of 4
        and 8 bits are found together.
        """
        searched = config
        if config.residual is not None:
            searched = config.replace(precision=f"{config.keyframe}->W{config.residual.weight}A{{0,4,8}}")
        path = self.args.scratch / f"{searched.notation}_{config.weights}_{config.keyframe_grid}.json".replace(">", "")
        if not path.exists():
            revert(self.model)
            convert(self.model, searched)
            calibrate(self.model, self.clips(), run=step_runner(self.model))
            write(path, {name: found_ranges(layer) for name, layer in residual_layers(self.model).items()})
            revert(self.model)
            convert(self.model, config)
        found = json.loads(path.read_text())
        for name, layer in residual_layers(self.model).items():
            layer.activation_norm.fill_(found[name]["norm"])
            for kind, quantizer in layer.activation_quantizers().items():
                if quantizer.bits:
                    half, signed = found[name][f"{kind.partition('.')[0]} {quantizer.bits}"]
                    quantizer.set_range(-half, half, signed=signed)

    def run(self, sequence: DavisSequence, video: Any) -> tuple[list[np.ndarray], list[int]]:
        """Labels and positions of the frames of a sequence."""
        found = list(follow(self.model, sequence, video=video, frames=self.args.frames))
        return [labels for labels, _ in found], [position for _, position in found]

    def reference(self, sequence: DavisSequence) -> list[np.ndarray] | None:
        """Float masks of a sequence, kept in scratch by the float row."""
        path = self.args.scratch / f"float_{sequence.name}_{self.args.frames}.npz"
        if not path.exists():
            return None
        packed = np.load(path)
        masks = np.unpackbits(packed["bits"], axis=-1, count=int(packed["width"]))
        return list(masks)

    def measure(self, video: Any, *, save: bool = False) -> tuple[dict[str, Any], float]:
        """Scores over all sequences and the agreement: mean J with the float masks, in percent."""
        scores: list[Scores] = []
        agreement = []
        for sequence in self.sequences:
            labels, positions = self.run(sequence, video)
            targets = [sequence.labels(t) for t in range(len(labels))]
            scores.append(score(sequence.name, (1,), labels, targets, positions))
            if save:
                bits = np.packbits(np.stack(labels), axis=-1)
                path = self.args.scratch / f"float_{sequence.name}_{self.args.frames}.npz"
                np.savez(path, bits=bits, width=labels[0].shape[1])
            reference = self.reference(sequence)
            if reference is not None:
                agreement.append(np.mean([jaccard(a, b) for a, b in zip(labels[1:-1], reference[1:-1], strict=True)]))
        return summarize_scores(scores), 100 * float(np.mean(agreement))

    def gbops(self, scheme: str, video: Any, shape: tuple[int, ...] = SHAPE, objects: int = 1) -> tuple[float, float]:
        """GBOPs per frame of a scheme and of frame quantization at W8A8."""
        config = ResQConfig.parse("W8A8", exclude=FLOAT_LAYERS)
        base = quantized_only(vos_cost(self.model, shape, config, objects=objects)).bops_per_frame / 1e9
        if scheme == "float":
            return base * 16, base  # 32 × 32 bits
        shares = None if video is None else (video.bit_shares() or None)
        cost = vos_cost(self.model, shape, objects=objects, shares=shares)
        return quantized_only(cost).bops_per_frame / 1e9, base

    def add(self, scheme: str, key: dict[str, Any], video: Any) -> None:
        """Measure and write a row."""
        start = time.perf_counter()
        result, agreement = self.measure(video, save=scheme == "float")
        gbops, base = self.gbops(scheme, video)
        self.write(scheme, key, result, agreement, gbops, base, seconds=time.perf_counter() - start)

    def write(
        self,
        scheme: str,
        key: dict[str, Any],
        result: dict[str, Any],
        agreement: float,
        gbops: float,
        base: float,
        **more: Any,
    ) -> None:
        """Add a row to the file."""
        row = {"scheme": scheme, **key, "interval": 1 if scheme in ("float", "frame") else INTERVAL}
        row |= {"reference": "float", "accuracy": result["J"], "metric": "J", "F": result["F"], "J&F": result["J&F"]}
        row |= {"agreement": agreement, "gbops_per_frame": gbops, "relative_bops": gbops / base}
        row |= {"by_distance": result["by_distance"], "sequences": result["sequences"], **more}
        self.rows.append(row)
        write(self.args.out, {"machine": machine(), "rows": self.rows})

    def float_row(self) -> None:
        """The float model, whose masks are kept for the agreement."""
        key = self.key("float", "", "", None)
        if not self.done(key) or any(self.reference(sequence) is None for sequence in self.sequences):
            self.rows = [row for row in self.rows if not all(row[name] == value for name, value in key.items())]
            self.add("float", key, None)

    def row(self, scheme: str, precision: str, threshold: float | None, weights: str, grid: str) -> None:
        """One setting, unless the file has it."""
        key = self.key(precision, weights, grid, threshold)
        if self.done(key):
            return
        values: dict[str, Any] = {"weights": weights, "keyframe_grid": grid, "exclude": FLOAT_LAYERS}
        values |= {"interval": INTERVAL, "calibration": SEARCH}
        if threshold is not None:
            values["policy"] = {"threshold": threshold, "normalize": "layer"}
        config = ResQConfig.parse(precision, **values)
        convert(self.model, config)
        try:
            self.ranges(config)
            if scheme == "frame":
                self.add(scheme, key, None)
            else:
                with stream(self.model) as video:
                    self.add(scheme, key, video)
        finally:
            revert(self.model)

    def camvid(self) -> None:
        """Several objects at once, with the ranges found on DAVIS."""
        frames, targets = camvid_objects(self.args.data)
        objects = [number + 1 for number in CAMVID.values()]
        reference: list[np.ndarray] | None = None
        for precision in ("float", *CAMVID_PRECISIONS):
            scheme = "float" if precision == "float" else "resq" if "->" in precision else "frame"
            key = {"precision": precision, "weights": "tensor", "keyframe_grid": "symmetric", "threshold": None}
            key |= {"frames": len(frames), "measured_on": ["camvid/val"]}
            if precision != "float":
                settings = {"interval": INTERVAL, "calibration": SEARCH, "exclude": FLOAT_LAYERS}
                config = ResQConfig.parse(precision, **settings)
                convert(self.model, config)
                self.ranges(config)
            with stream(self.model) if scheme == "resq" else contextlib.nullcontext() as video:
                tracker = Propagation(self.model, video=video)
                labels, positions = [], []
                for index, frame in enumerate(frames):
                    tracker(frame, torch.from_numpy(targets[0].astype(np.int64)) if index == 0 else None)
                    labels.append(tracker.labels(targets[0].shape)[0].numpy().astype(np.uint8))
                    positions.append(-1 if video is None else video.position)
                result = summarize_scores([score("camvid", objects, labels, targets, positions)])
                reference = reference or labels
                agreement = summarize_scores([score("camvid", objects, labels, reference)])["J"]
                gbops, base = self.gbops(scheme, video, tuple(frames[0].shape), len(objects))
            if precision != "float":
                revert(self.model)
            if not self.done(key):
                names = {str(number + 1): name for name, number in CAMVID.items()}
                self.write(scheme, key, result, agreement, gbops, base, objects=names)


def found_ranges(layer: Any) -> dict[str, Any]:
    """Half range and grid of every quantizer of a layer, by kind and bits, and the norm of its activations."""
    found: dict[str, Any] = {"norm": float(layer.activation_norm)}
    for kind, quantizer in layer.activation_quantizers().items():
        half = quantizer.range[1] if quantizer.bits else 0.0
        found[f"{kind.partition('.')[0]} {quantizer.bits}"] = [half, bool(quantizer.signed)]
    return found


def camvid_objects(data: Path) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Frames (1, 3, 240, 320), RGB 0..1, and labels (360, 480): class + 1 of the followed classes, else 0."""
    folder = require(data / "camvid" / "val")
    frames, labels = [], []
    for path in sorted(folder.glob("*.png")):
        frames.append(F.interpolate(read_frame(path), (240, 320), mode="bilinear", antialias=True))
        classes = np.array(Image.open(path.parent.with_name("valannot") / path.name))
        labels.append(np.where(np.isin(classes, list(CAMVID.values())), classes + 1, 0).astype(np.uint8))
    return frames, labels


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        "scheme", "precision", "weights", "grid", "frames", "J", "F", "J with float", "GBOPs", "J by distance"
    )
    for row in rows:
        distances = " ".join(f"{value:.1f}" for value in row["by_distance"]["J"])
        numbers = [f"{row[name]:.1f}" for name in ("accuracy", "F", "agreement", "gbops_per_frame")]
        frames = str(row["frames"] or "all")
        table.add_row(
            row["scheme"], row["precision"], row["weights"], row["keyframe_grid"], frames, *numbers, distances
        )
    console.print(table)


def main() -> None:
    """Measure everything that is not in the file yet."""
    options = parser(__doc__, "vos.json")
    options.add_argument("--sequences", nargs="+", default=MEASURED, metavar="NAME")
    options.add_argument("--frames", type=int, help="only so many of the first frames of each sequence")
    options.add_argument("--settings", choices=("main", "all"), default="main", help="weights and grids")
    options.add_argument("--camvid", action="store_true", help="several objects, with ranges found before")
    options.add_argument("--precisions", nargs="+", metavar="P", help="only these, e.g. 'W8A8->W4A8'")
    options.add_argument("--scratch", type=Path, default=Path("/tmp/resq_vos"), help="folder for ranges, float masks")
    options.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    console = Console()
    bench = Bench(args)
    if args.camvid:
        bench.camvid()
        show(console, bench.rows)
        return
    bench.float_row()
    for weights, grid in SETTINGS if args.settings == "all" else SETTINGS[:1]:
        for scheme, precision, threshold in PRECISIONS:
            if args.precisions and precision not in args.precisions:
                continue
            start = time.perf_counter()
            bench.row(scheme, precision, threshold, weights, grid)
            console.log(weights, grid, precision, f"{time.perf_counter() - start:.0f} s")
    show(console, bench.rows)
    console.print("written to", str(args.out))


if __name__ == "__main__":
    main()
