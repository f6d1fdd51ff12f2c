"""``resq export`` and ``resq verify``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from resq_plugin.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resq_plugin.export.htp.check import HtpVerification
    from resq_plugin.export.verification import Verification

__all__ = ["add_export", "add_verify"]

SHOWN = 8


def add_export(commands: Any) -> None:
    """``resq export``: a calibrated mm model to a folder that runs without it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write the keyframe and residual graphs of a calibrated mm model",
        description="Write keyframe.onnx, residual.onnx, encodings, a golden clip and manifest.json of a model of "
        "MMSeg or MMPose that was converted and calibrated (a file of resq_plugin.save_checkpoint).",
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="config file, or a model-zoo name such as mmseg::ddrnet/....py"
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="file of resq_plugin.save_checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; replaced as a whole")
    parser.add_argument(
        "--shape", type=int, nargs=2, required=True, metavar=("H", "W"), help="height and width of a frame in pixels"
    )
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="FILE",
        help="a .npy file of consecutive normalised frames (T, 3, H, W), float32; default: noise. With --target htp "
        "ranges are found on them: give real ones",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=(), metavar="KEY=VALUE", help="settings of the config to override"
    )
    parser.add_argument(
        "--target", choices=("cpu", "htp"), default="cpu", help="htp: also write what Qualcomm's HTP loads"
    )
    parser.add_argument(
        "--htp-arch", type=int, default=75, metavar="V", help="version of the HTP (default: %(default)s)"
    )
    parser.add_argument("--soc", type=int, metavar="N", help="Qualcomm's number of the chip, e.g. 57")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.set_defaults(run=_run_export)


def _run_export(args: argparse.Namespace, console: Console) -> int:
    import torch  # noqa: PLC0415

    from resq_plugin.conversion import (  # noqa: PLC0415
        checkpoint_config,
        convert,
        load_checkpoint,
    )
    from resq_plugin.export import HtpConfig, export_model  # noqa: PLC0415

    config = checkpoint_config(args.checkpoint)
    frames = _frames(args.frames, (3, *args.shape))
    # The toolkits take long to import: only once the arguments are known to be good.
    from resq_mmengine.zoo import FrameModel, build_model  # noqa: PLC0415

    model = FrameModel(build_model(args.config, dict(map(_option, args.cfg_options)))).eval()
    convert(model, config, example=torch.from_numpy(frames[:1]))
    load_checkpoint(model, args.checkpoint)
    htp = HtpConfig(args.htp_arch, args.soc) if args.target == "htp" else None
    with console.status("exporting"):
        manifest = export_model(model, [torch.from_numpy(frame[None]) for frame in frames], args.out, htp=htp)
    if args.json:
        _write(args.json, dataclasses.asdict(manifest))
    console.print(
        f"{args.out}: {' and '.join(manifest.graphs)} of {config}, {len(manifest.layers)} layers, memory of a stream "
        f"{manifest.state_bytes / 1e6:.1f} MB in {len(manifest.caches)} tensors",
        highlight=False,
        soft_wrap=True,
    )
    if manifest.float_layers:
        console.print(f"In float: {', '.join(manifest.float_layers)}", highlight=False, soft_wrap=True)
    if manifest.htp:
        memory = sum(cache.bytes for cache in manifest.htp.caches)
        console.print(
            f"HTP v{manifest.htp.arch}: both graphs as a whole, nothing left in float, memory {memory / 1e6:.1f} MB",
            highlight=False,
        )
    return 0


def _option(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` with a Python value, or a string where it is none."""
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _frames(path: Path | None, shape: tuple[int, ...]) -> Any:
    import numpy as np  # noqa: PLC0415

    if path is None:
        generator = np.random.default_rng(0)
        still = generator.standard_normal((1, *shape), dtype=np.float32)
        return still + 0.1 * generator.standard_normal((10, *shape), dtype=np.float32)
    try:
        frames = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        msg = f"cannot read {path}: {error}; write it with numpy.save(path, frames), frames (T, 3, H, W) float32."
        raise ExportError(msg) from error
    if frames.ndim != 4 or frames.shape[1:] != shape or frames.dtype != np.float32:
        msg = f"{path} holds {frames.shape} {frames.dtype}; write frames (T, {', '.join(map(str, shape))}) float32."
        raise ExportError(msg)
    return frames


def add_verify(commands: Any) -> None:
    """``resq verify``: an exported folder against torch."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify",
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
    parser.set_defaults(run=_run_verify)


def _run_verify(args: argparse.Namespace, console: Console) -> int:
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
        _write(args.json, values)
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
    from resq_plugin.export.htp.check import LAYER_LIMIT  # noqa: PLC0415

    if found.worst_layer > LAYER_LIMIT:
        yield f"layer {found.layers[0].weight} alone {found.worst_layer} LSB (limit {LAYER_LIMIT})"
    for graph in found.graphs:
        if not graph.passed:
            yield f"{graph.graph} {graph.lsb:.1f} LSB from torch (limit {graph.limit:.1f})"


def _show_cpu(found: Verification, console: Console) -> None:
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
    from resq_plugin.export.htp.check import split_native  # noqa: PLC0415

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


def _write(path: Path, values: dict[str, Any]) -> None:
    from resq_plugin.cli.program import write_json  # noqa: PLC0415

    write_json(path, values)
