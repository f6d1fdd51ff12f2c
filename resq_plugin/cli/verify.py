"""``resq verify``: an exported folder against torch."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_plugin.cli.commands import Commands, add_command
from resq_plugin.cli.output import write_json
from resq_plugin.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from resq_plugin.export import HtpVerification, Verification

__all__ = ["add"]

SHOWN = 8


def add(commands: Commands) -> None:
    """``resq verify``: an exported folder against torch."""
    parser = add_command(
        commands,
        "verify",
        needs={"onnx": "export", "onnxruntime": "export"},
        help="play an exported folder and say by how many LSB it differs from torch",
        description="Play the golden clip of an exported folder through ONNX Runtime and compare with what torch "
        "computed at the export. Exit code 2 if a file was changed or a graph differs.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of resq export")
    parser.add_argument(
        "--target", choices=("cpu", "htp"), default="cpu", help="htp: also on Qualcomm's HTP, CPU fallback off"
    )
    parser.add_argument(
        "--frames", type=int, default=2, help="frames on the HTP, whose emulation is slow (default: 2)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_plugin.export import verify  # noqa: PLC0415

    found = verify(args.folder)
    values: dict[str, Any] = {"cpu": dataclasses.asdict(found)}
    _show_cpu(found, console)
    htp: HtpVerification | None = None
    if args.target == "htp":
        from resq_plugin.export import verify_htp  # noqa: PLC0415

        with console.status("running on the HTP"):
            htp = verify_htp(args.folder, frames=args.frames)
        values["htp"] = dataclasses.asdict(htp)
        _show_htp(htp, console)
    if args.json:
        write_json(args.json, values)
    if not found.passed:
        wrong = [f"{part.graph} {part.name} by {part.lsb:.3g} LSB" for part in found.wrong]
        named = ", ".join(wrong[:SHOWN])
        msg = f"ONNX Runtime differs from torch: {named}; see the table above, and export the model again."
        raise ExportError(msg)
    if htp is not None and not htp.passed:
        msg = f"the HTP differs by more than the limit: {', '.join(_exceeded(htp))}."
        raise ExportError(msg)
    return 0


def _exceeded(found: HtpVerification) -> Iterator[str]:
    from resq_plugin.export import LAYER_LIMIT  # noqa: PLC0415

    if found.worst_layer > LAYER_LIMIT:
        yield f"layer {found.layers[0].weight} alone {found.worst_layer} LSB (limit {LAYER_LIMIT})"
    for graph in found.graphs:
        if not graph.passed:
            yield f"{graph.graph} {graph.lsb:.1f} LSB from torch (limit {graph.limit:.1f})"


def _show_cpu(found: Verification, console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415

    title = "ONNX Runtime against torch"
    table = Table("graph", "", "worst tensor", "worst LSB", "over 1 LSB %", "limit, LSB", title=title)
    for graph in dict.fromkeys(tensor.graph for tensor in found.tensors):
        for label, tensors, limit in (("layer by layer", found.parts, "1"), ("as a whole", found.tensors, "")):
            worst = next(tensor for tensor in tensors if tensor.graph == graph)
            table.add_row(graph, label, worst.name, f"{worst.lsb:.3g}", f"{100 * worst.beyond:.2f}", limit)
    console.print(table)
    console.print(
        f"argmax of the {found.frames}-frame clip as one stream: {found.agreement:.2f} % equal", highlight=False
    )


def _show_htp(found: HtpVerification, console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415

    from resq_plugin.export import split_native  # noqa: PLC0415

    table = Table("graph", "weight", "operator", "worst LSB", "differ %", title="Single layers, HTP against CPU")
    for layer in found.layers[:SHOWN]:
        table.add_row(layer.graph, layer.weight, layer.operator, str(layer.lsb), f"{100 * layer.share:.1f}")
    console.print(table)
    for graph in found.graphs:
        worst = graph.tensors[0]
        console.print(
            f"HTP {graph.graph}: argmax equal {graph.agreement_cpu:.2f} % with the CPU, "
            f"{graph.agreement_torch:.2f} % with torch; {graph.lsb:.1f} LSB from torch (limit {graph.limit:.1f}); "
            f"worst tensor against the CPU {worst.name}, {worst.lsb:.0f} LSB",
            highlight=False,
            soft_wrap=True,
        )
    for spec in found.precisions:
        native, carried = (", ".join(texts) or "nothing" for texts in split_native(spec))
        line = f"{spec.name} {spec.precision}: native {native}; carried {carried}"
        console.print(line, highlight=False, soft_wrap=True)
