"""Accuracy on the arithmetic of Qualcomm's HTP: DDRNet-23-slim on CamVid, compiled and played as whole graphs.

Each scheme is calibrated on camvid/calib, exported there (ranges of what lies between the layers come from the same
frames) and played over camvid/val as one stream, in torch and on the HTP's emulation with CPU fallback off. The
emulation computes what the device computes; its times are the host's and say nothing about the device.

    uv run --group dev python benchmarks/htp.py  # resumes where it stopped; the table goes to docs/export.md
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CLASSES, ROOT, calibration_clips, camvid, ddrnet, machine, parser, segment, write
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Shown
from torch import Tensor

from resq_plugin import ResQConfig, calibrate, convert, revert, stream
from resq_plugin.export import HtpConfig, OrtStream, export_model, verify
from resq_plugin.files import write_text

SCHEMES = {"frame W8A8": "W8A8", "ResQ W8A8->W4A8": "W8A8->W4A8", "frame W4A8": "W4A8"}
INTERVAL = 3
ARCH = 75
COLUMNS = (
    "scheme",
    "frames",
    "mIoU on the HTP",
    "mIoU of the simulation",
    "equal argmax %",
    "CPU, worst layer",
    "CPU keyframe as a whole",
    "CPU residual as a whole",
)
BEGIN, END = "<!-- written by benchmarks/htp.py -->", "<!-- end of what benchmarks/htp.py wrote -->"

Table = NDArray[np.int64]


class Bench:
    """The network, its data and the predictions made so far."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.model = ddrnet(args.data / "weights" / "ddrnet23slim_camvid.pth")
        self.calib = camvid(args.data, "calib")[0]
        frames, labels = camvid(args.data, "val")
        count = args.frames // INTERVAL * INTERVAL  # whole intervals, so that more can follow
        self.frames, self.labels = frames[:count], labels[:count]
        self.values: dict[str, Any] = {"schemes": {}}
        if args.out.exists() and not args.fresh:
            self.values = json.loads(args.out.read_text())

    def run(self, name: str, precision: str) -> None:
        """Measure one scheme; the float model is back afterwards."""
        row = self.values["schemes"].setdefault(name, {"precision": precision, "frames": 0})
        if row["frames"] >= len(self.frames) and "onnxruntime" in row:
            return
        config = ResQConfig.parse(precision, interval=INTERVAL, weights="channel", reference="quantized")
        convert(self.model, config, example=self.calib[0])
        try:
            calibrate(self.model, calibration_clips(self.calib))
            with torch.no_grad(), stream(self.model) as video:
                predictions = [segment(video(frame)) for frame in self.frames]
            with tempfile.TemporaryDirectory() as folder:
                export_model(self.model, self.calib[:10], Path(folder) / "out", htp=HtpConfig(ARCH, compile=False))
                row["onnxruntime"] = on_cpu(Path(folder) / "out", self.args.threads)
                self.play(Path(folder) / "out", row, predictions)
        finally:
            revert(self.model)

    def play(self, folder: Path, row: dict[str, Any], predictions: list[Tensor]) -> None:
        """Play the intervals that are missing on the HTP, and write what is known after each."""
        player = OrtStream(folder, device="htp")
        row["operators_on_htp"] = "all"  # CPU fallback is off: the session would not open otherwise
        tables = {key: _table(row.get(key)) for key in ("htp", "torch")}
        equal = row["frames"] * row.get("argmax_agreement", 0.0)
        for start in range(row["frames"], len(self.frames), INTERVAL):
            for t in range(start, start + INTERVAL):
                found = segment(torch.from_numpy(np.asarray(player(self.frames[t].numpy()))))
                tables["htp"] += confusion(found, self.labels[t])
                tables["torch"] += confusion(predictions[t], self.labels[t])
                equal += 100 * float((found == predictions[t]).float().mean())
            row["frames"] = start + INTERVAL
            row["argmax_agreement"] = round(equal / row["frames"], 4)
            for key, table in tables.items():
                row[f"miou_{key}"] = round(miou(table), 2)
                row[key] = [" ".join(map(str, line)) for line in table.tolist()]
            self.save()
        self.save()

    def save(self) -> None:
        """Write what is known."""
        write(self.args.out, {**self.values, **self.facts()})

    def facts(self) -> dict[str, Any]:
        """What the numbers belong to."""
        return {
            "data": f"CamVid val, {len(self.frames)} frames, 480x360, one stream, T={INTERVAL}",
            "settings": "weights=channel, reference=quantized, calibrated on camvid/calib",
            "target": f"HTP v{ARCH} emulation of onnxruntime-qnn, CPU fallback off",
            "machine": machine(),
        }


def on_cpu(folder: Path, threads: int) -> dict[str, Any]:
    """What `resq verify` finds on the CPU, in LSB."""
    found = verify(folder, threads=threads)
    graphs = {
        graph: {
            "parts": sum(part.graph == graph for part in found.parts),
            "layer_lsb": round(found.worst_part(graph), 5),
            "whole_lsb": round(found.worst(graph), 2),
        }
        for graph in sorted({tensor.graph for tensor in found.tensors})
    }
    return {"passed": found.passed, "argmax_agreement": round(found.agreement, 2), "graphs": graphs}


def _table(lines: list[str] | None) -> Table:
    if lines is None:
        return np.zeros((CLASSES, CLASSES), np.int64)
    return np.array([list(map(int, line.split())) for line in lines])


def confusion(prediction: Tensor, label: Tensor) -> Table:
    """Pixels of one frame by (label, prediction), CLASSES × CLASSES."""
    seen = label < CLASSES
    pairs = label[seen] * CLASSES + prediction[seen]
    return torch.bincount(pairs.flatten(), minlength=CLASSES**2).reshape(CLASSES, CLASSES).numpy()


def miou(table: Table) -> float:
    """Mean IoU in percent over the classes that occur."""
    both = table.diagonal()
    either = table.sum(0) + table.sum(1) - both
    return 100 * float((both[either > 0] / either[either > 0]).mean())


def insert(path: Path, schemes: dict[str, Any]) -> None:
    """Write the table between the markers of a document."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        msg = f"{path} has no lines {BEGIN} and {END} for the table."
        raise SystemExit(msg)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(schemes)]
    table = "\n".join(lines)
    write_text(path, f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def rows(schemes: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Cells of the table."""
    for name, row in schemes.items():
        numbers = (f"{row[key]:.2f}" for key in ("miou_htp", "miou_torch", "argmax_agreement"))
        graphs = (row["onnxruntime"]["graphs"].get(kind) for kind in ("keyframe", "residual"))
        worst = max(graph["layer_lsb"] for graph in row["onnxruntime"]["graphs"].values())
        wholes = (f"{graph['whole_lsb']:.2f}" if graph else "–" for graph in graphs)
        yield name, str(row["frames"]), *numbers, f"{worst:.4f}", *wholes


def main() -> None:
    """Measure everything that is not in the file yet."""
    options = parser(__doc__, "htp.json")
    options.add_argument("--frames", type=int, default=36, help="frames of camvid/val (default: %(default)s, all)")
    options.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    options.add_argument("--docs", type=Path, default=ROOT / "docs" / "export.md", help="document with the table")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    for name, precision in SCHEMES.items():
        bench.run(name, precision)
    table = Shown(*COLUMNS)
    for cells in rows(bench.values["schemes"]):
        table.add_row(*cells)
    Console().print(table)
    insert(args.docs, bench.values["schemes"])


if __name__ == "__main__":
    main()
