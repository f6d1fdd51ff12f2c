"""``resq export``: a calibrated mm model to a folder that runs without it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from resq_plugin.cli.commands import Commands, add_command
from resq_plugin.cli.output import warn, write_json
from resq_plugin.errors import ExportError, ResQError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

__all__ = ["add"]

FRAMES = 10
"""Of a golden clip."""


def add(commands: Commands) -> None:
    """``resq export``: a calibrated mm model to a folder that runs without it."""
    parser = add_command(
        commands,
        "export",
        needs={"onnx": "export", "onnxruntime": "export", "mmengine": "mmseg"},
        help="write the keyframe and residual graphs of a calibrated mm model",
        description="Write keyframe.onnx, residual.onnx, encodings, a golden clip and manifest.json of a model of "
        "MMSeg or MMPose that was converted and calibrated.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="config file, or a model-zoo name such as mmseg::ddrnet/....py"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="file of resq compare, resq eval, training or resq_plugin.save_checkpoint",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; an earlier export there is replaced as a whole, anything else is refused",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of a frame in pixels (default: that of the frames)",
    )
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="FILE",
        help="a video or a folder of frames, prepared as the config says, or a .npy or .npz file of consecutive "
        "normalised frames (T, 3, H, W), float32; default: the config's calibration clips, or noise, which says "
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
    from resq_plugin.conversion import checkpoint_config, load  # noqa: PLC0415
    from resq_plugin.export import HtpConfig, check_export_folder, export_model  # noqa: PLC0415
    from resq_plugin.report import progress_bar  # noqa: PLC0415

    check_export_folder(args.out)
    if args.json and Path(os.path.realpath(args.json)).is_relative_to(os.path.realpath(args.out)):
        msg = f"--json {args.json} lies in {args.out}, which is replaced as a whole; name a file beside it."
        raise ExportError(msg)
    config = checkpoint_config(args.checkpoint)
    size = tuple(args.shape) if args.shape else None
    is_array = args.frames is not None and args.frames.suffix.lower() in (".npy", ".npz")
    given = _arrays(args.frames, size) if is_array else None
    # The toolkits take long to import: only once the arguments are known to be good.
    from resq_mmengine.options import read_options  # noqa: PLC0415
    from resq_mmengine.zoo import FrameModel, build_model, load_config  # noqa: PLC0415

    source = load_config(args.config)
    source.merge_from_dict(read_options(args.cfg_options))
    network = build_model(source)
    frames, warning = (given, "") if given is not None else _frames(args, source, network, size)
    model = load(args.checkpoint, FrameModel(network).eval())
    htp = HtpConfig(args.htp_arch, args.soc) if args.target == "htp" else None
    with progress_bar(console) as bar:
        task = bar.add_task("exporting", total=None, completed=-1)
        manifest = export_model(
            model,
            frames,
            args.out,
            htp=htp,
            on_step=lambda text, total: bar.update(task, description=text, advance=1, total=total),
        )
    if args.json:
        write_json(args.json, dataclasses.asdict(manifest))
    if warning:
        warn(console, warning)
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


def _frames(args: argparse.Namespace, config: Any, network: Any, size: Any) -> tuple[list[Tensor], str]:
    """The frames (1, 3, H, W) of a video, of the config's clips, or noise; and what is to be warned of."""
    from resq_mmengine.export_frames import frames_of_config, frames_of_video  # noqa: PLC0415

    if args.frames is not None:
        return frames_of_video(args.frames, config, network, size, FRAMES), ""
    try:
        found = frames_of_config(config, network, size, FRAMES)
        why = "the config names no calibration clips (resq.calibration.dataset)"
    except ExportError:
        raise
    except ResQError as error:
        found, why = None, f"the config's calibration clips cannot be read ({error})"
    if found is not None:
        return found, ""
    if size is None:
        msg = f"no --frames and no --shape, and {why}; give --frames VIDEO, or --shape H W."
        raise ExportError(msg)
    return _noise(size), _noise_warning(args.target, why)


def _noise_warning(target: str, why: str) -> str:
    """What an export without frames is worth."""
    what = "the golden clip is noise, so that resq verify shows nothing of your videos"
    if target == "htp":
        what = (
            "the HTP's ranges of additions, outputs and memory were found on noise and will not fit your videos: this "
            "export is good for trying the compiler, not for use"
        )
    return f"no --frames: {what}; {why}. Give real, consecutive frames: --frames VIDEO, or --frames clip.npy."


def _noise(size: tuple[int, int]) -> list[Tensor]:
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)
    still = torch.randn(1, 3, *size, generator=generator)
    return [still + 0.1 * torch.randn(1, 3, *size, generator=generator) for _ in range(FRAMES)]


def _arrays(path: Path, size: tuple[int, int] | None) -> list[Tensor]:
    """The frames (1, 3, H, W) of a file of NumPy."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    shape = "H, W" if size is None else "{}, {}".format(*size)
    try:
        frames = np.load(path, allow_pickle=False)
        if isinstance(frames, np.lib.npyio.NpzFile):
            names = frames.files
            if len(names) != 1:
                msg = (
                    f"{path} holds {len(names)} arrays ({', '.join(names[:5])}); write one of frames (T, 3, {shape})."
                )
                raise ExportError(msg)
            frames = frames[names[0]]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        msg = f"cannot read {path}: {error}; write it with numpy.save(path, frames), frames (T, 3, H, W) float32."
        raise ExportError(msg) from error
    is_clip = frames.ndim == 4 and frames.shape[1] == 3 and (size is None or frames.shape[2:] == size)
    if not is_clip or frames.dtype != np.float32:
        msg = f"{path} holds {frames.shape} {frames.dtype}; write frames (T, 3, {shape}) float32."
        raise ExportError(msg)
    return list(torch.from_numpy(frames)[:, None])
