"""Nets of the model zoos: what of them is quantized, and their bit operations at the resolution they are evaluated at.

Nothing is computed but shapes, and no weights are needed. Every row has

* the linear layers that run, and how many of them are converted (heads for training only do not run);
* the batch norms that run, and how many of them are folded;
* multiply-accumulates (MACs) of the whole net by PyTorch's own counter, and how many of them are in converted layers;
* bit operations (BOPs) per frame by `measure_cost`, without what stays dense, and the bytes of a stream on a device.

The tables in docs/mmseg.md and docs/mmpose.md are written from the JSON file.

    uv run --group dev python benchmarks/zoo.py             # a minute on one core
    uv run --group dev python benchmarks/zoo.py --tables    # the tables only, from the JSON file that is there
"""

from __future__ import annotations

import copy
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT, machine, parser, write
from resq_mmengine.tested import TESTED
from resq_mmengine.zoo import FrameModel, build_model, load_config
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resq_plugin import ResQConfig, convert, measure_cost, summarize
from resq_plugin.conversion import fold_batch_norms
from resq_plugin.cost import FLOAT_BITS
from resq_plugin.files import write_text

INTERVAL = 3
PRECISIONS = ("W8A8", "W8A8->W8A4", "W8A8->W4A4", "W4A4->W3A3")
PRODUCTS = {"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"}
BEGIN, END = "<!-- written by benchmarks/zoo.py -->", "<!-- end of what benchmarks/zoo.py wrote -->"


def evaluation_shape(config: Any) -> tuple[int, int, int, int]:
    """Shape (1, 3, H, W) of what the configuration evaluates: a whole image of Cityscapes, or the crop of a person."""
    if config.default_scope == "mmpose":
        width, height = config.codec.input_size
    else:
        width, height = next(step.scale for step in config.test_pipeline if step.type == "Resize")
    return 1, 3, height, width


def count_macs(model: nn.Module, shape: Sequence[int]) -> int:
    """MACs of one frame by PyTorch's counter, which sees convolutions and products of matrices wherever they are."""
    model = copy.deepcopy(model).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(tuple(shape), device="meta"))
    return counter.get_total_flops() // 2


def measure(net: str) -> dict[str, Any]:
    """Return the row of a net."""
    config = load_config(TESTED[net])
    shape = evaluation_shape(config)
    model = FrameModel(build_model(config))
    modules = dict(model.named_modules())
    macs = count_macs(model, shape)
    costs = {text: measure_cost(model, shape, ResQConfig.parse(text, interval=INTERVAL)) for text in PRECISIONS}
    cost = costs["W8A8->W4A4"]
    converted = [layer for layer in cost.layers if layer.precision != "float"]
    norms = {ops.module for ops in cost.uncounted if isinstance(modules[ops.module], nn.modules.batchnorm._BatchNorm)}

    convert(model, "W8A8->W4A4")
    frame = torch.zeros(
        shape if config.default_scope == "mmpose" else (1, 3, 128, 256)
    )  # folding is alike at any size
    folded = norms.intersection(fold_batch_norms(model, frame))
    unsupported = [name.partition(" ")[0] for name in summarize(model).unsupported]
    dense = {*unsupported, *(ops.module for ops in cost.uncounted if ops.operator in PRODUCTS)}
    outermost = [name for name in dense if not any(name.startswith(f"{other}.") for other in dense)]
    return {
        "net": net,
        "toolkit": config.default_scope,
        "config": TESTED[net],
        "shape": list(shape),
        "layers": {"converted": len(converted), "all": len(cost.layers) + len(unsupported)},
        "batch_norms": {"folded": len(folded), "all": len(norms)},
        "macs": {"converted": sum(layer.macs for layer in converted), "all": macs},
        "gbops_per_frame": {text: each.bops_per_frame / 1e9 for text, each in costs.items()},
        "state_bytes": cost.state_bytes,
        "dense": dict(Counter(type(modules[name]).__name__ for name in outermost)),
    }


def section(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown, one line per net, and what stays dense."""
    heading = ["net", "input", "layers", "batch norms", "GMACs", "covered", *PRECISIONS, "state"]
    lines = [heading, ["---", "---", *["---:"] * (len(heading) - 2)]]
    notes = []
    for row in rows:
        macs, dense = row["macs"], row["macs"]["all"] - row["macs"]["converted"]
        lines.append(
            [
                row["net"],
                "×".join(map(str, row["shape"][2:])),
                f"{row['layers']['converted']} / {row['layers']['all']}",
                f"{row['batch_norms']['folded']} / {row['batch_norms']['all']}",
                f"{macs['all'] / 1e9:.2f}",
                f"{100 * macs['converted'] / macs['all']:.2f} %",
                *(f"{row['gbops_per_frame'][text]:.1f}" for text in PRECISIONS),
                f"{row['state_bytes'] / 2**20:.0f} MiB",
            ]
        )
        if dense:
            where = " and ".join(f"{count} {kind}" for kind, count in row["dense"].items())
            bops = f"{dense * FLOAT_BITS**2 / 1e9:.1f}"
            notes.append(
                f"- {row['net']}: {dense / 1e9:.3g} GMACs in {where}, {bops} GBOPs as float ({FLOAT_BITS} bits)."
            )
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return table + ("\n\nWhat stays dense and is not in the BOPs:\n\n" + "\n".join(notes) if notes else "")


def insert(path: Path, text: str) -> None:
    """Replace what is between the markers of a document."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        msg = f"{path} has no lines {BEGIN} and {END} for the table."
        raise SystemExit(msg)
    write_text(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> None:
    """Count every net, write the JSON file after each, and the tables at the end."""
    options = parser(__doc__, "zoo.json")
    options.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder with mmseg.md and mmpose.md")
    options.add_argument("--tables", action="store_true", help="write the tables from the JSON file that is there")
    options.add_argument("--nets", nargs="*", choices=list(TESTED), default=list(TESTED), metavar="NET")
    args = options.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for net in () if args.tables else args.nets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(measure(net))
        write(args.out, {"interval": INTERVAL, "machine": machine(), "rows": rows})
        Console().log(net, rows[-1]["layers"], f"{rows[-1]['macs']['all'] / 1e9:.2f} GMACs")
    rows = json.loads(args.out.read_text())["rows"]
    for toolkit in ("mmseg", "mmpose"):
        insert(args.docs / f"{toolkit}.md", section([row for row in rows if row["toolkit"] == toolkit]))


if __name__ == "__main__":
    main()
