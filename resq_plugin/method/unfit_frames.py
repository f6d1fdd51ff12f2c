"""Why a network fails on a frame: its type, its layout or its size, found by trying what differs in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from resq_plugin.errors import FrameError, ResQError
from resq_plugin.method.frames import image_of
from resq_plugin.method.layers import dense_execution

__all__ = ["FAILURES", "cure_of", "evaluating", "failure_on", "telling_unfit_frames"]

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What PyTorch and networks raise where shapes or types do not fit."""
STEPS = (16, 32, 64)
"""What networks want the size of a frame to be a multiple of."""
CHANNELS = (1, 3, 4)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode inside and give every module its own training flag back."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def telling_unfit_frames(
    model: nn.Module,
    frame: Any,
    error: type[ResQError] = FrameError,
    run: Callable[[Any], Any] | None = None,
) -> Iterator[None]:
    """Let a failure inside say what is wrong with a frame, where it runs in another type, layout or size.

    Whatever else fails is raised as it is.

    Args:
        model: a float or converted network.
        frame: what it is run on, a tensor or a pytree with one.
        error: what is raised.
        run: what runs a frame, when it is not ``model(frame)``.
    """
    try:
        yield
    except (ResQError, torch.OutOfMemoryError):
        raise
    except FAILURES as failure:
        cure = cure_of(frame, lambda other: _in_float(model, run or model, other), _dtype_of(model))
        if not cure:
            raise
        raise error(failure_on(frame, failure) + cure) from failure


def failure_on(frame: Any, failure: BaseException) -> str:
    """``the model fails on frames of 34 × 50 (...)``; `cure_of` goes on."""
    image = image_of(frame)
    text = " ".join(str(failure).split())[:200].rstrip(".")
    if image.dim() == 4 and image.dtype == torch.float32 and image.shape[1] in CHANNELS:
        what = "{} × {}".format(*image.shape[-2:])
    else:
        what = _described(image)
    return f"the model fails on frames of {what} ({text})"


def cure_of(frame: Any, run: Callable[[Any], Any], dtype: torch.dtype = torch.float32) -> str:
    """Say what is to be done to a frame so that ``run`` takes it, or return an empty string where nobody knows.

    Args:
        frame: what ``run`` failed on.
        run: runs a frame, or raises.
        dtype: of the weights.
    """
    image = image_of(frame)

    def runs(other: Tensor) -> bool:
        try:
            run(
                other
                if frame is image
                else tree_map_only(Tensor, lambda part: other if part is image else part, frame)
            )
        except Exception:  # whatever a network raises on what is no frame of its
            return False
        return True

    if runs(image):
        return ""
    for code, other in _forms(image, dtype):
        if runs(other):
            hint = f"; it runs on {_described(other)}: write {code}"
            if not image.is_floating_point():
                hint += ", normalised as the model was trained (resq_plugin.video.read(path, mean=..., std=...))"
            return f"{hint}."
    if image.dim() != 4:
        return ""
    near = [size for size in _sizes_near(*image.shape[-2:]) if runs(image.new_zeros((*image.shape[:-2], *size)))]
    return f"; it runs on {', '.join(f'{h} × {w}' for h, w in near)}: resize frames to such a size." if near else ""


def _in_float(model: nn.Module, run: Callable[[Any], Any], frame: Any) -> None:
    with evaluating(model), torch.no_grad(), dense_execution():
        run(frame)


def _dtype_of(model: nn.Module) -> torch.dtype:
    kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(kinds, torch.get_default_dtype())


def _forms(image: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The image in other types and layouts, and the code that makes it so."""
    cast = "" if image.dtype == dtype else ".float()" if dtype == torch.float32 else f".to({dtype})"
    layouts = [("frame", image)]
    if image.dim() == 2:
        layouts.append(("a frame (1, 3, H, W)", image.expand(1, 3, -1, -1)))
    if image.dim() == 3:
        layouts.append(("frame[None]", image[None]))
        if image.shape[-1] in CHANNELS:
            layouts.append(("frame.permute(2, 0, 1)[None]", image.permute(2, 0, 1)[None]))
    if image.dim() == 4 and image.shape[-1] in CHANNELS:
        layouts.append(("frame.permute(0, 3, 1, 2)", image.permute(0, 3, 1, 2)))
    for code, other in layouts:
        if code + cast != "frame":
            yield code + cast, other.to(dtype)


def _sizes_near(height: int, width: int) -> list[tuple[int, int]]:
    """The nearest sizes that numbers such as 32 divide, other than the size itself."""
    sizes = [(max(step, step * round(height / step)), max(step, step * round(width / step))) for step in STEPS]
    return [size for size in dict.fromkeys(sizes) if size != (height, width)]


def _described(image: Tensor) -> str:
    return f"{tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}"
