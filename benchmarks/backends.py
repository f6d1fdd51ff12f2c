"""The three backends side by side on CamVid: accuracy, bit operations, and forward time against their hosts.

DDRNet-23-slim; ranges from camvid/calib, accuracy on camvid/val by the paper's protocol, T = 3, tensor weights, float
reference. Hosts are the stock 8-bit simulations of PyTorch (`torch.ao.quantization`), AIMET and Brevitas, of the net
with batch norms folded; the torch backend is also timed against its own frame-by-frame W8A8. It resumes where it
stopped.

    uv run --group dev python benchmarks/backends.py
"""

from __future__ import annotations

import copy
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import aimet_torch
import torch
import torch.ao.quantization as ao
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from common import CLASSES, calibration_clips, camvid, ddrnet, machine, parser, segment, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, convert, measure_cost, stream
from resq_plugin.evaluation import Agreement, MeanIoU, evaluate

BACKENDS = ("torch", "aimet", "brevitas")
OWN = "torch, own frames"
PRECISIONS = ("W8A8->W4A4", "W8A8->W8A4")
INTERVAL = 3
SHAPE = (1, 3, 360, 480)
TARGETS = {"largest_miou_difference": 0.2, "residual_over_host_forward": 1.1}


class Bench:
    """The data, the float net and what was measured so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        calib, (frames, labels) = camvid(args.data, "calib")[0], camvid(args.data, "val")
        self.clips = calibration_clips(calib)[: args.clips]
        self.frames, self.labels = frames[: args.frames], labels[: args.frames]
        self.net = ddrnet(args.data / "weights" / "ddrnet23slim_camvid.pth")
        data = f"CamVid val, first {len(self.frames)} frames, 480x360; ranges from {len(self.clips)} clips of 3 frames"
        self.results: dict[str, Any] = {"data": data, "rows": []}
        if args.out.exists() and not args.fresh:
            self.results = json.loads(args.out.read_text())

    def model(self, backend: str, precision: str, **settings: Any) -> nn.Module:
        """Return a converted and calibrated copy of the net."""
        config = ResQConfig.parse(precision, interval=INTERVAL, backend=backend, **settings)
        model = convert(copy.deepcopy(self.net), config)
        calibrate(model, self.clips[:1] if settings else self.clips)
        return model

    def save(self) -> None:
        """Write the file."""
        self.results |= {"targets": TARGETS, "machine": machine()}
        write(self.args.out, self.results)


def measure_rows(bench: Bench) -> None:
    """Measure accuracy and cost of every backend and precision."""
    with torch.inference_mode():
        reference = [segment(bench.net(frame)) for frame in bench.frames]
    targets = {"miou": [bench.labels], "agreement": [reference]}
    metrics = {"miou": lambda: MeanIoU(CLASSES), "agreement": Agreement}
    options = {"predict": segment, "interval": INTERVAL, "every_position": True}
    for precision in PRECISIONS:
        for backend in BACKENDS:
            key = {"backend": backend, "precision": precision}
            if any(row | key == row for row in bench.results["rows"]):
                continue
            model = bench.model(backend, precision)
            with torch.inference_mode():
                result = evaluate(model, [bench.frames], targets, metrics, **options)
            cost = measure_cost(model, SHAPE, **result.amortized())
            scores = {"miou": round(result.mean("miou"), 3), "agreement": round(result.mean("agreement"), 3)}
            row = {**key, **scores, "gbops_per_frame": cost.bops_per_frame / 1e9, "state_bytes": cost.state_bytes}
            bench.results["rows"].append(row)
            bench.save()


def hosts(bench: Bench) -> dict[str, Callable[[Tensor], Any]]:
    """Return the 8-bit model of every backend's host."""
    from brevitas.graph.calibrate import calibration_mode  # noqa: PLC0415  # warns of itself
    from brevitas.graph.quantize import layerwise_quantize  # noqa: PLC0415
    from brevitas.nn import QuantConv2d  # noqa: PLC0415
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat  # noqa: PLC0415

    folded = copy.deepcopy(bench.net)
    aimet_torch.nn.QuantizationMixin.ignore_unknown_modules(True)  # MMSegmentation's losses and preprocessor
    fold_all_batch_norms(folded, None, dummy_input=bench.frames[0])
    sim = aimet_torch.QuantizationSimModel(folded, bench.frames[0])
    sim.compute_encodings(lambda model: model(bench.clips[0][0]))
    quantizers = {"input_quant": Int8ActPerTensorFloat, "weight_quant": Int8WeightPerTensorFloat}
    stock = layerwise_quantize(copy.deepcopy(folded), compute_layer_map={nn.Conv2d: (QuantConv2d, quantizers)})
    with torch.no_grad(), calibration_mode(stock):
        stock(bench.clips[0][0])
    search = {"samples": 2, "candidates": 3, "recheck": 0}
    return {
        "torch": torch_host(folded, bench.clips[0][0]),
        OWN: bench.model("torch", "W8A8", calibration=search),
        "aimet": sim.model,
        "brevitas": stock.eval(),
    }


def torch_host(folded: nn.Module, frame: Tensor) -> nn.Module:
    """PyTorch's own simulation of W8A8: `torch.ao.quantization`, a symmetric range per tensor as in ResQ."""
    fake = ao.FakeQuantize.with_args(
        observer=ao.MinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_tensor_symmetric,
    )
    model = copy.deepcopy(folded).train()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.qconfig = ao.QConfig(activation=fake, weight=fake)
    simulated: nn.Module = ao.prepare_qat(model).eval()
    with torch.no_grad():
        simulated(frame)
    return simulated.apply(ao.disable_observer)


def measure_forward(bench: Bench) -> None:
    """Time a residual frame of W8A8->W4A4 against the host's forward, in turn; the median of the ratios counts.

    The torch backend is timed against its own frame-by-frame W8A8, too.
    """
    search = {"samples": 2, "candidates": 3, "recheck": 0}
    plain = hosts(bench)
    streams = {name: stream(bench.model(name, "W8A8->W4A4", calibration=search), interval=10**9) for name in BACKENDS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in plain}
    with torch.inference_mode():
        for repeat in range(bench.args.repeats + 2):
            frame = bench.frames[repeat % 3]
            for name in plain:
                pair = seconds(plain[name], frame), seconds(streams[name.partition(",")[0]], frame)
                if repeat > 1:  # the first is a keyframe, the second warms up
                    times[name].append(pair)
    bench.results["forward"] = {
        name: {
            "host_ms": round(1e3 * statistics.median(host for host, _ in pairs), 1),
            "residual_ms": round(1e3 * statistics.median(residual for _, residual in pairs), 1),
            "ratio": round(statistics.median(residual / host for host, residual in pairs), 3),
        }
        for name, pairs in times.items()
    }
    bench.save()


def seconds(run: Callable[[Tensor], Any], frame: Tensor) -> float:
    """CPU time of one call over all threads, which other programs on the machine disturb least."""
    start = time.process_time()
    run(frame)
    return time.process_time() - start


def main() -> None:
    """Measure everything that is not in the file yet."""
    options = parser(__doc__, "backends.json")
    options.add_argument("--frames", type=int, default=36, help="frames of camvid/val")
    options.add_argument("--clips", type=int, default=15, help="calibration clips")
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # the toolkits' own
    for name in ("resq_aimet", "resq_brevitas", "Quant"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bench = Bench(args)
    if "forward" not in bench.results:
        measure_forward(bench)
    measure_rows(bench)
    rows = bench.results["rows"]
    spreads = [
        max(values) - min(values)
        for values in ([row["miou"] for row in rows if row["precision"] == p] for p in PRECISIONS)
    ]
    costs = [{row["gbops_per_frame"] for row in rows if row["precision"] == p} for p in PRECISIONS]
    bench.results["largest_miou_difference"] = round(max(spreads), 3)
    bench.results["bops_identical"] = all(len(values) == 1 for values in costs)
    bench.save()
    table = Table("backend", "precision", "mIoU", "agreement %", "GBOPs per frame")
    for row in rows:
        numbers = (f"{row[name]:.2f}" for name in ("miou", "agreement", "gbops_per_frame"))
        table.add_row(row["backend"], row["precision"], *numbers)
    console = Console()
    console.print(table, bench.results["forward"])


if __name__ == "__main__":
    main()
