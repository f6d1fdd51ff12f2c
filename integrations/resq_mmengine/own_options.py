"""What commands that run the user's model on the user's videos share: options, and the model they make."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_plugin.errors import ConfigError

if TYPE_CHECKING:
    from resq_mmengine.own_model import OwnModel

__all__ = ["add_own_model", "read_own_model"]


def add_own_model(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options that name a model, its weights and videos, and where results go.

    Args:
        parser: of the command.
        out: folder that ``--out`` stands for where it is not given.
    """
    parser.add_argument("config", metavar="CONFIG", help="config file, or a model-zoo name such as mmseg::....py")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CK", help="float weights")
    parser.add_argument(
        "--video", type=Path, required=True, nargs="+", metavar="FILE", help="video files or folders of frames"
    )
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="label maps called as the frames are, where known")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="resize frames, instead of the config's")
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames of each video")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="pose: JSON list of a box per frame, x0 y0 x1 y1")
    parser.add_argument(
        "--predict", metavar="MODULE:FUNCTION", help="makes what is compared, a tensor, of the raw output of the head"
    )
    parser.add_argument("--cfg-options", nargs="+", default=(), metavar="KEY=VALUE", help="as in MMEngine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")


def read_own_model(args: argparse.Namespace) -> OwnModel:
    """Build the model that the options name, with its weights and videos.

    Raises:
        ConfigError: ``--boxes`` holds no boxes, or what `OwnModel` raises.
    """
    from resq_mmengine.own_model import OwnModel  # noqa: PLC0415

    return OwnModel(
        args.config,
        args.checkpoint,
        args.video,
        size=tuple(args.size) if args.size else None,
        frames=args.frames,
        boxes=_boxes(args.boxes),
        predict=args.predict,
        options=args.cfg_options,
    )


def _boxes(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))
        fits = all(len(box) == 4 and all(isinstance(value, (int, float)) for value in box) for box in boxes)
    except (OSError, ValueError, TypeError) as error:
        msg = f"--boxes {path}: {error}; write a JSON list with [left, top, right, bottom] in pixels for each frame."
        raise ConfigError(msg) from error
    if not boxes or not fits:
        msg = f"--boxes {path} holds no list of [left, top, right, bottom] in pixels, one for each frame."
        raise ConfigError(msg)
    return boxes
