"""The small STM as ONNX graphs: every layer against torch in LSB, and a clip played by ONNX Runtime.

    uv run --group dev python benchmarks/vos_export.py     # the first 11 frames of dog at a quarter of their size

Ranges are those of benchmarks/vos.py (kept in --scratch, found if they are not there).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import vos
from common import machine, parser, write
from resq_vos.calibration import record_clips
from resq_vos.davis import find_sequences, read_frame
from resq_vos.export import OrtSTM, export_stm, verify_stm
from resq_vos.metrics import jaccard
from resq_vos.propagation import Propagation
from resq_vos.stm import FLOAT_LAYERS

from resq_plugin import ResQConfig, convert, stream

PRECISION = "W8A8->W8A4"
SIZE = (120, 214)
FRAMES = 11


def measure(bench: vos.Bench, root: Path) -> dict[str, Any]:
    """Export, verify and play."""
    sequence = find_sequences(root, ["dog"], year=2016)[0]
    pictures = (read_frame(path) for path in sequence.frames[:FRAMES])
    frames = [F.interpolate(frame, SIZE, mode="bilinear", antialias=True) for frame in pictures]
    labels = torch.from_numpy(sequence.labels(0).astype(np.int64))
    steps = record_clips(bench.model, frames, labels, length=FRAMES - 1)[0]
    config = ResQConfig.parse(PRECISION, interval=vos.INTERVAL, calibration=vos.SEARCH, exclude=FLOAT_LAYERS)
    convert(bench.model, config)
    bench.ranges(config)
    with tempfile.TemporaryDirectory() as scratch:
        export_stm(bench.model, steps, Path(scratch) / "stm", capacity=4, encodings=())
        found = verify_stm(Path(scratch) / "stm")
        player = OrtSTM(Path(scratch) / "stm")
        with stream(bench.model) as video:
            pair = Propagation(bench.model, video=video), Propagation(player)
            agreement = []
            for index, frame in enumerate(frames):
                ours, theirs = (tracker(frame, labels if index == 0 else None)[0].numpy() for tracker in pair)
                agreement.append(jaccard(ours, theirs))
    parts = {
        f"{part} {kind}": item.worst_part(kind) for part, item in found.items() for kind in ("keyframe", "residual")
    }
    return {
        "precision": PRECISION,
        "size": list(SIZE),
        "frames": FRAMES,
        "passed": all(item.passed for item in found.values()),
        "worst_layer_lsb": parts,
        "clip_j": 100 * float(np.mean(agreement[1:])),
        "state_bytes": player.state_bytes(),
    }


def main() -> None:
    options = parser(__doc__, "vos_export.json")
    options.add_argument("--scratch", type=Path, default=Path("/tmp/resq_vos"), help="folder for ranges")
    args = options.parse_args()
    args.sequences, args.frames, args.fresh, out = ["dog"], None, True, args.out
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    values = measure(vos.Bench(args), args.data / "davis2016")
    write(out, {"machine": machine(), **values})
    print(values)


if __name__ == "__main__":
    main()
