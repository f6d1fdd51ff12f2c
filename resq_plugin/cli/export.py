"""``resq export``: a calibrated mm model to a folder that runs without it."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_plugin.cli.commands import Commands, add_command
from resq_plugin.cli.output import warn, write_json
from resq_plugin.errors import ExportError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add"]


def add(commands: Commands) -> None:
    """``resq export``: a calibrated mm model to a folder that runs without it."""
    parser = add_command(
        commands,
        "export",
        needs={"onnx": "export", "onnxruntime": "export", "mmengine": "mmseg"},
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
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; an earlier export there is replaced as a whole, anything else is refused",
    )
    parser.add_argument(
        "--shape", type=int, nargs=2, required=True, metavar=("H", "W"), help="height and width of a frame in pixels"
    )
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="FILE",
        help="a .npy file of consecutive normalised frames (T, 3, H, W), float32; default: noise, which says "
        "nothing of your videos. With --target htp ranges are found on them: give real ones",
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
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, console: Console) -> int:
    import torch  # noqa: PLC0415

    from resq_plugin.conversion import (  # noqa: PLC0415
        checkpoint_config,
        convert,
        load_checkpoint,
    )
    from resq_plugin.export import HtpConfig, check_export_folder, export_model  # noqa: PLC0415

    check_export_folder(args.out)
    if args.json and Path(os.path.realpath(args.json)).is_relative_to(os.path.realpath(args.out)):
        msg = f"--json {args.json} lies in {args.out}, which is replaced as a whole; name a file beside it."
        raise ExportError(msg)
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
        write_json(args.json, dataclasses.asdict(manifest))
    if args.frames is None:
        warn(console, _noise_warning(args.target))
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


def _noise_warning(target: str) -> str:
    """What an export without frames is worth."""
    what = "the golden clip is noise, so that resq verify shows nothing of your videos"
    if target == "htp":
        what = (
            "the HTP's ranges of additions, outputs and memory were found on noise and will not fit your videos: this "
            "export is good for trying the compiler, not for use"
        )
    return f"no --frames: {what}. Give real, consecutive, normalised ones: --frames clip.npy."


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
