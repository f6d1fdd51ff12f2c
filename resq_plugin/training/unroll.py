"""Unrolling an interval: one frame after another, with gradients through time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from resq_plugin.backends import TorchResidualLayer, sharing_weights
from resq_plugin.errors import ConfigError
from resq_plugin.method import residual_layers, stream

__all__ = ["one_step", "refuse_sharded", "unroll"]


def unroll(
    model: nn.Module,
    frames: Sequence[Tensor],
    *,
    run: Callable[[int, Tensor], Any] | None = None,
    truncate: bool = False,
    checkpointing: bool = False,
    shares: dict[str, dict[int, float]] | None = None,
) -> Iterator[Any]:
    """Run one interval as a video and yield the output of every frame.

    Args:
        model: converted and calibrated. A model without residuals takes every frame on its own.
        frames: T frames (N, C, H, W), N intervals in step; the first is the keyframe.
        run: what runs the frame at a position, when it is not ``model(frame)``.
        truncate: let no gradient flow from a frame into an earlier one.
        checkpointing: keep the inputs of each frame only, and compute the frame again in the backward pass.
        shares: is given the share of pixels per bit width of each layer with a dynamic pool at the end.

    Raises:
        ConfigError: the parameters are sharded.
    """
    refuse_sharded(model)

    def plain(_: int, frame: Tensor) -> Any:
        return model(frame)

    call = plain if run is None else run
    with stream(model, interval=len(frames), keep_graph=not truncate) as video:
        for position, frame in enumerate(frames):
            if position == 0:
                video.start_interval()
            with video.frame(frame):
                if checkpointing:
                    output = checkpoint(call, position, frame, use_reentrant=False)
                else:
                    output = call(position, frame)
            yield output
        if shares is not None:
            shares.update(video.bit_shares())


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose parameters are sharded.

    Raises:
        ConfigError: `torch.distributed.fsdp.fully_shard` was applied.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        msg = (
            f"{type(model).__name__} has sharded parameters (fully_shard). FSDP2 puts other tensors in their place at "
            "the first forward pass, which a stream takes for a change of the weights within an interval, and it "
            "shards no scalar, as scales are; use DistributedDataParallel: start train(...) in several processes."
        )
        raise ConfigError(msg)


@contextmanager
def one_step(model: nn.Module, *, residuals: bool = True) -> Iterator[None]:
    """Quantize the weights of a model once for everything run inside, with their graph; they must not change inside.

    Args:
        model: converted.
        residuals: whether frames other than keyframes are run.
    """
    paths = []
    for layer in residual_layers(model).values():
        if isinstance(layer, TorchResidualLayer):  # those of AIMET and Brevitas are, too
            paths.append((layer, "keyframe"))
            if residuals and layer.settings.residual is not None:
                paths.append((layer, "residual"))
    with sharing_weights(paths):
        yield
