"""``resq verify``: an exported folder against torch."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_plugin.cli.commands import Commands, add_command
from resq_plugin.cli.output import warn, write_json
from resq_plugin.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.table import Table

    from resq_plugin.export import HtpVerification, Verification

__all__ = ["add"]

SHOWN = 8
ALIKE = 3
"""Layers from which on like ones share a line."""
FAR = 25.0
"""LSB from torch, a tenth of the grid, at which integers between the layers are worth a warning."""


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
        from resq_plugin.report import progress_bar  # noqa: PLC0415

        with progress_bar(console) as bar:
            task = bar.add_task("HTP", total=None, completed=-1)
            htp = verify_htp(
                args.folder,
                frames=args.frames,
                on_step=lambda text, total: bar.update(task, description=f"HTP, {text}", advance=1, total=total),
            )
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
    for layer in [layer for layer in found.layers if not layer.passed][:SHOWN]:
        yield f"{layer.graph} {layer.operator} {layer.weight} alone {layer.lsb} LSB (limit {layer.limit})"
    for graph in found.graphs:
        if graph.lsb > graph.limit:
            yield f"{graph.graph} {graph.lsb:.1f} LSB from torch (limit {graph.limit:.1f})"
        elif not graph.passed:
            yield f"{graph.graph} returns other numbers, by {graph.watched:.1f} LSB, when its inside is watched"


def _show_cpu(found: Verification, console: Console) -> None:
    table = _table("ONNX Runtime against torch", "graph", "compared", "worst tensor", "LSB", ">1 LSB %", "limit")
    for graph in dict.fromkeys(tensor.graph for tensor in found.tensors):
        for label, tensors, limit in (("by layer", found.parts, "1"), ("whole", found.tensors, "")):
            worst = next(tensor for tensor in tensors if tensor.graph == graph)
            table.add_row(graph, label, worst.name, f"{worst.lsb:.3g}", f"{100 * worst.beyond:.2f}", limit)
    console.print(table)
    console.print(
        f"argmax of the {found.frames}-frame clip as one stream: {found.agreement:.2f} % equal", highlight=False
    )
    if found.is_constant:
        warn(
            console,
            "torch's argmax is one and the same everywhere, so that equal ones say nothing: look at the frames of the "
            "clip and their normalization.",
        )
    if found.is_still:
        warn(
            console,
            "all residual frames of the clip have the same output, so that a difference of 0 "
            "LSB says nothing: the clip stands still, or residual weights or inputs round to zero. Export frames that "
            "move; where weights are the cause, convert with weights='channel'.",
        )


def _show_htp(found: HtpVerification, console: Console) -> None:
    table = _table(
        "Operators inside, HTP against CPU, same integers", "graph", "weight or tensor", "op", "LSB", "differ %"
    )
    for layer in found.layers[:SHOWN]:
        table.add_row(
            layer.graph, layer.weight, layer.operator, str(layer.lsb), str(layer.limit), f"{100 * layer.share:.1f}"
        )
    console.print(table)
    if len(found.layers) > SHOWN:
        most = max(layer.lsb for layer in found.layers[SHOWN:])
        console.print(f"and {len(found.layers) - SHOWN} more with {most} LSB at most", highlight=False)
    for graph in found.graphs:
        worst = graph.tensors[0]
        console.print(
            f"HTP {graph.graph}: argmax equal {graph.agreement_cpu:.2f} % with the CPU, "
            f"{graph.agreement_torch:.2f} % with torch; {graph.lsb:.1f} LSB from torch (the same integers on the CPU: "
            f"{graph.lsb_cpu:.1f}, limit {graph.limit:.1f}); worst tensor against the CPU {worst.name}, "
            f"{worst.lsb:.0f} LSB",
            highlight=False,
            soft_wrap=True,
        )
        if graph.lsb_cpu > FAR:
            warn(
                console,
                f"8 bits between the layers of the {graph.graph} graph lie far from the "
                "simulation, on the CPU as on the HTP, where small errors are multiplied by large weights. Fold batch "
                "norms, equalize the network (AIMET's equalize_model), or convert with weights='channel'.",
            )
    for line in _bits(found):
        console.print(line, highlight=False, soft_wrap=True)


def _bits(found: HtpVerification) -> Iterator[str]:
    """What is native and what is carried, like layers in one line."""
    from resq_plugin.export import split_native  # noqa: PLC0415

    groups: dict[str, list[str]] = {}
    for spec in found.precisions:
        native, carried = (", ".join(texts) or "nothing" for texts in split_native(spec))
        groups.setdefault(f"{spec.precision}: native {native}; carried {carried}", []).append(spec.name)
    largest = max(map(len, groups.values()), default=0)
    for text, names in groups.items():
        if len(names) < ALIKE:
            yield from (f"{name} {text}" for name in names)
        elif len(groups) == 1:
            yield f"all {len(names)} layers {text}"
        elif len(names) == largest:
            yield f"{len(names)} layers, {names[0]} to {names[-1]}, {text}"
        else:
            yield f"{len(names)} layers ({', '.join(names)}) {text}"


def _table(title: str, *columns: str) -> Table:
    """A table in which long names fold and nothing is cut."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
