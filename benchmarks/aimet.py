"""ResQ in AIMET against AIMET's own simulation: accuracy, forward time and calibration time on CamVid.

DDRNet-23-slim; encodings from camvid/calib, accuracy on camvid/val by the paper's protocol, T = 3, tensor weights and
paper placement for ResQ. AIMET's own sims have its defaults (channel weights, min-max, supergroups). Rows of the torch
backend that benchmarks/results/camvid.json lacks are measured, too. It resumes where it stopped.

    uv run --group dev python benchmarks/aimet.py
"""

from __future__ import annotations

import copy
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aimet_torch
import resq_aimet
import torch
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from common import CLASSES, ROOT, calibration_clips, camvid, ddrnet, machine, parser, segment, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert
from resq_plugin.evaluation import Agreement, MeanIoU, evaluate

INTERVAL = 3
PLAIN = ((8, 8), (4, 8))
RESQ = ("W8A8->W8A4", "W8A8->W4A4", "W8A8->W4A8", "W8A8->W8A{0,4,8}")
PLACEMENTS = (*((precision, "paper") for precision in RESQ), ("W8A8->W4A4", "hardware"))
THRESHOLD = 0.1
TARGETS = {"difference_to_torch_miou": 0.3, "residual_over_aimet_forward": 1.1, "calibration_over_aimet": 2.0}


class Bench:
    """The data, the float nets and what was measured so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.weights = args.data / "weights" / "ddrnet23slim_camvid.pth"
        self.calib = camvid(args.data, "calib")[0]
        self.clips = calibration_clips(self.calib)
        self.frames, self.labels = camvid(args.data, "val")
        self.float_net = ddrnet(self.weights)
        with torch.inference_mode():
            self.reference = [segment(self.float_net(frame)) for frame in self.frames]
        self.folded = ddrnet(self.weights)
        aimet_torch.nn.QuantizationMixin.ignore_unknown_modules(True)  # MMSegmentation's losses and preprocessor
        fold_all_batch_norms(self.folded, None, dummy_input=self.frames[0])
        self.results: dict[str, Any] = {"data": "CamVid val, 36 frames, 480x360", "rows": []}
        if args.out.exists() and not args.fresh:
            self.results = json.loads(args.out.read_text())

    def sim(self, weight: int = 8, activation: int = 8) -> aimet_torch.QuantizationSimModel:
        """Return AIMET's simulation of the folded net."""
        widths = {"default_param_bw": weight, "default_output_bw": activation}
        return aimet_torch.QuantizationSimModel(self.folded, self.frames[0], **widths)

    def frame_scores(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of a model that runs every frame on its own."""
        miou, agreement = MeanIoU(CLASSES), Agreement()
        with torch.inference_mode():
            for frame, label, expected in zip(self.frames, self.labels, self.reference, strict=True):
                prediction = segment(model(frame).as_subclass(Tensor))
                miou.update(prediction, label)
                agreement.update(prediction, expected)
        return {"accuracy": round(miou.compute(), 2), "agreement": round(agreement.compute(), 2)}

    def stream_scores(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of a converted model, every frame at every position of the interval."""
        targets = {"miou": [self.labels], "agreement": [self.reference]}
        metrics = {"miou": lambda: MeanIoU(CLASSES), "agreement": Agreement}
        options = {"predict": segment, "interval": INTERVAL, "every_position": True}
        with torch.inference_mode():
            result = evaluate(model, [self.frames], targets, metrics, **options)
        return {"accuracy": round(result.mean("miou"), 2), "agreement": round(result.mean("agreement"), 2)}

    def row(self, measure: Callable[[], dict[str, float]], **key: Any) -> None:
        """Measure and keep a row unless it exists."""
        if not any(all(row.get(name) == value for name, value in key.items()) for row in self.results["rows"]):
            self.results["rows"].append({**key, **measure()})
            self.save()

    def save(self) -> None:
        """Write the file."""
        self.results |= {"aimet": aimet_torch.__version__, "targets": TARGETS, "machine": machine()}
        write(self.args.out, self.results)

    def accuracy(self, by: str, precision: str, placement: str = "paper") -> float:
        """Accuracy of a row."""
        keys = {"by": by, "precision": precision, "placement": placement}
        rows = [row for row in self.results["rows"] if all(row[name] == value for name, value in keys.items())]
        return float(rows[0]["accuracy"])


def config_of(precision: str, **settings: Any) -> ResQConfig:
    """Return the configuration of a row."""
    return ResQConfig.parse(precision, interval=INTERVAL, policy={"threshold": THRESHOLD}, **settings)


def from_camvid(precision: str) -> dict[str, float] | None:
    """Return the accuracy that benchmarks/camvid.py measured with the torch backend, if it did."""
    path: Path = ROOT / "benchmarks" / "results" / "camvid.json"
    key = {"precision": precision, "weights": "tensor", "reference": "float", "interval": INTERVAL}
    for row in json.loads(path.read_text())["rows"] if path.exists() else ():
        if all(row[name] == value for name, value in key.items()) and row["threshold"] in (None, THRESHOLD):
            return {"accuracy": row["accuracy"], "agreement": row["agreement"]}
    return None


def measure_rows(bench: Bench) -> None:
    """Measure the accuracy of every scheme."""

    def plain(weight: int, activation: int) -> dict[str, float]:
        sim = bench.sim(weight, activation)
        sim.compute_encodings(lambda model: play(model, bench.clips))
        return bench.frame_scores(sim.model)

    def of_torch(precision: str) -> dict[str, float]:
        known = from_camvid(precision)
        if known is not None:
            return known
        model = convert(copy.deepcopy(bench.float_net), config_of(precision))
        calibrate(model, bench.clips)
        return bench.stream_scores(model)

    def of_aimet(precision: str, placement: str) -> dict[str, float]:
        resq = resq_aimet.convert(bench.sim(), config_of(precision), placement=placement)
        resq.compute_encodings(bench.clips)
        return bench.stream_scores(resq.sim.model)

    for weight, activation in PLAIN:
        key = {"by": "AIMET", "precision": f"W{weight}A{activation}", "placement": "hardware"}
        bench.row(lambda w=weight, a=activation: plain(w, a), **key)
    for precision, placement in PLACEMENTS:
        key = {"precision": precision, "placement": placement}
        bench.row(lambda p=precision, q=placement: of_aimet(p, q), by="ResQ-AIMET", **key)
    for precision in RESQ:
        bench.row(lambda p=precision: of_torch(p), by="ResQ-torch", precision=precision, placement="paper")


def measure_forward(bench: Bench, repeats: int) -> None:
    """Time a residual frame against the forward of AIMET's W8A8 sim, in turn."""
    plain = bench.sim()
    plain.compute_encodings(lambda model: model(bench.calib[0]))
    runs = {"AIMET W8A8": plain.model}
    for precision in ("W8A8->W4A4", "W8A8->W8A{0,4,8}"):
        resq = resq_aimet.convert(bench.sim(), config_of(precision, calibration={"samples": 2, "recheck": 0}))
        resq.compute_encodings(bench.clips[:1])
        runs[precision] = resq.stream(interval=10**9)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for repeat in range(repeats + 2):
            frame = bench.frames[repeat % 3]
            for name, run in runs.items():
                start = time.perf_counter()
                run(frame)
                if repeat > 1:  # the first is a keyframe, the second warms up
                    times[name].append(time.perf_counter() - start)
    base = times["AIMET W8A8"]
    bench.results["forward"] = {
        name: {
            "median_ms": round(1e3 * statistics.median(values), 1),
            "ratio": round(statistics.median(t / b for t, b in zip(values, base, strict=True)), 3),
        }
        for name, values in times.items()
    }
    bench.save()


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of all threads, which other programs on the machine disturb least."""
    start = time.process_time()
    run()
    return round(time.process_time() - start, 1)


def measure_calibration(bench: Bench) -> None:
    """Time the search of Eq. 8 with c = 64 against AIMET's min-max on the same frames."""
    clips = calibration_clips(bench.calib, step=1)
    resq = resq_aimet.convert(bench.sim(), config_of("W8A8->W4A4"))
    plain = bench.sim()
    values: dict[str, Any] = {"frames": sum(map(len, clips)), "clips": len(clips)}
    values["aimet_cpu_seconds"] = cpu_seconds(lambda: plain.compute_encodings(lambda model: play(model, clips)))
    values["resq_cpu_seconds"] = cpu_seconds(lambda: resq.compute_encodings(clips))
    values["ratio"] = round(values["resq_cpu_seconds"] / values["aimet_cpu_seconds"], 2)
    bench.results["calibration"] = values
    bench.save()


def play(model: nn.Module, clips: Iterable[list[Tensor]]) -> None:
    """Run the frames of all clips."""
    for clip in clips:
        for frame in clip:
            model(frame)


def main() -> None:
    """Measure everything that is not in the file yet."""
    options = parser(__doc__, "aimet.json")
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("resq_aimet").setLevel(logging.ERROR)
    bench = Bench(args)
    measure_rows(bench)
    if "forward" not in bench.results:
        measure_forward(bench, args.repeats)
    if "calibration" not in bench.results:
        measure_calibration(bench)
    differences = [
        abs(bench.accuracy("ResQ-AIMET", precision) - bench.accuracy("ResQ-torch", precision)) for precision in RESQ
    ]
    bench.results["largest_difference_to_torch_miou"] = round(max(differences), 2)
    bench.save()
    table = Table("by", "precision", "placement", "mIoU", "agreement %")
    for row in bench.results["rows"]:
        keys = [row[name] for name in ("by", "precision", "placement")]
        table.add_row(*keys, f"{row['accuracy']:.1f}", f"{row['agreement']:.1f}")
    console = Console()
    console.print(table, bench.results["forward"], bench.results["calibration"])


if __name__ == "__main__":
    main()
