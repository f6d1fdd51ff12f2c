"""The golden clip: what torch computes, kept in the folder so that ``resq verify`` needs no model.

Frames and memory are rounded to 8 bits first, which keeps the file small; torch and the graphs get the same rounded
values, so nothing is lost by it. Of new memory a sample is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resq_plugin.conversion import evaluating
from resq_plugin.errors import ExportError
from resq_plugin.export.archive import Archive, Expected
from resq_plugin.export.caches import CachePlan
from resq_plugin.export.difference import sample_size, sampled
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.specs import FRAME
from resq_plugin.export.strict import one_line
from resq_plugin.method import LayerCache, StreamState, executing, stream

__all__ = ["Golden", "caches_of", "golden_clip"]

FRAMES = 10

Array = NDArray[Any]
Values = Mapping[str, Array]


@dataclass(frozen=True)
class Golden:
    """Frames, memory, and what torch makes of them.

    Attributes:
        frames: float32 (N, C, H, W) each.
        memory: cache name to the memory that every single residual frame reads.
        keyframe: of every frame as a keyframe, the model's outputs and new memory (`sampled`), by name.
        residual: of every frame but the first as a residual frame that reads ``memory``, the same.
        stream: of every frame of the whole clip as one stream, the outputs.
    """

    frames: tuple[Array, ...]
    memory: Values
    keyframe: tuple[Values, ...]
    residual: tuple[Values, ...]
    stream: tuple[Values, ...]

    def write(self, path: Path) -> None:
        """Write it compressed."""
        values: dict[str, Array] = {}
        for key, array in [
            *((f"frame/{index}", frame) for index, frame in enumerate(self.frames)),
            *((f"memory/{name}", array) for name, array in self.memory.items()),
        ]:
            values[key], values[f"{key}/scale"] = _pack(array)
        for kind in ("keyframe", "residual", "stream"):
            for index, outputs in enumerate(getattr(self, kind)):
                values |= {f"{kind}/{index}/{name}": array for name, array in outputs.items()}
        np.savez_compressed(path, **values)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path, manifest: Manifest | None = None) -> Golden:
        """Read it.

        Args:
            path: of the file.
            manifest: of the folder, if it was read, which says what the file holds.

        Raises:
            ExportError: the file is missing, damaged or not of that folder.
        """
        manifest = manifest or Manifest.read(path.parent)
        integers = {f"memory/{cache.name}" for cache in manifest.caches if cache.scale is not None}
        try:
            with Archive(path) as file:
                values = file.read_all(_expected(manifest))
            tables: dict[str, dict[int, dict[str, Array]]] = {"keyframe": {}, "residual": {}, "stream": {}}
            packed = {}
            for key, array in values.items():
                kind, _, rest = key.partition("/")
                if kind in tables:
                    index, _, name = rest.partition("/")
                    tables[kind].setdefault(int(index), {})[name] = array
                elif not key.endswith("/scale"):
                    scale = values[f"{key}/scale"]
                    if not (scale == 0 if key in integers else 0 < scale < 1e36):  # so that floats hold the product
                        msg = f"{key!r:.80} has scale {scale}"
                        raise ValueError(msg)
                    packed[key] = _unpack(array, scale)
            memory = {k.removeprefix("memory/"): v for k, v in packed.items() if k.startswith("memory/")}
            frames = tuple(packed[f"frame/{index}"] for index in range(len(packed) - len(memory)))
            keyframe, residual, played = (tuple(table[i] for i in range(len(table))) for table in tables.values())
            return cls(frames, memory, keyframe, residual, played)
        except Exception as error:  # a damaged archive raises whatever the reader stumbles over
            msg = f"{path} is missing or damaged ({type(error).__name__}: {one_line(error)}); export the model again."
            raise ExportError(msg) from error


def golden_clip(
    model: nn.Module, frames: Sequence[Tensor], plan: CachePlan, names: Sequence[str], interval: int
) -> Golden:
    """Run a clip of `FRAMES` frames in torch.

    Args:
        model: converted and calibrated.
        frames: (N, C, H, W) each; a short clip goes on with its last frame, moved by a pixel each time.
        plan: the caches.
        names: of the model's outputs.
        interval: T of the stream.
    """
    clip = [torch.from_numpy(_rounded(frame.numpy())) for frame in frames[:FRAMES]]
    while len(clip) < FRAMES:
        clip.append(clip[-1].roll(1, -1))

    def outputs(result: Any) -> dict[str, Array]:
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return {name: tensor.numpy().copy() for name, tensor in zip(names, tensors, strict=True)}

    def keyframe(frame: Tensor) -> tuple[dict[str, Array], dict[str, Array]]:
        state = StreamState()
        state.start_frame(0)
        with executing(state):
            results = outputs(model(frame))
        written = _memory(state, plan)
        return results | {name: sampled(array) for name, array in written.items()}, written

    def residual(frame: Tensor) -> dict[str, Array]:
        state = StreamState()
        state.caches = caches_of(memory, plan)
        state.start_frame(1)
        with executing(state):
            results = outputs(model(frame))
        new = _memory(state, plan) if plan.is_updated else {}
        return results | {f"new.{name}": sampled(array) for name, array in new.items()}

    with evaluating(model), torch.no_grad():
        memory = {name: _rounded(array) for name, array in keyframe(clip[0])[1].items()}
        keyframes = [keyframe(frame)[0] for frame in clip]
        residuals = [residual(frame) for frame in clip[1:]] if plan.caches else []
        with stream(model, interval=interval) as video:
            played = tuple(outputs(video(frame)) for frame in clip)
    return Golden(tuple(frame.numpy() for frame in clip), memory, tuple(keyframes), tuple(residuals), played)


def _memory(state: StreamState, plan: CachePlan) -> dict[str, Array]:
    """The memory of a stream as its graphs hold it: integers where it lies on a grid."""
    tensors = {plan.x[call]: cache.x for call, cache in state.caches.items()}
    tensors |= {plan.z[call]: cache.z for call, cache in state.caches.items()}
    grids = {cache.name: cache.grid for cache in plan.caches}
    arrays = {name: tensors[name].numpy() for name in grids}
    return {
        name: array if (grid := grids[name]) is None else grid.quantize(array).astype(grid.container)
        for name, array in arrays.items()
    }


def caches_of(memory: Values, plan: CachePlan) -> dict[tuple[str, int], LayerCache]:
    """The memory of a stream as torch holds it, private copies, by call of a layer."""
    grids = {cache.name: cache.grid for cache in plan.caches}

    def tensor(name: str) -> Tensor:
        grid, array = grids[name], memory[name]
        return torch.from_numpy(array.copy() if grid is None else grid.dequantize(array))

    return {call: LayerCache(tensor(plan.x[call]), tensor(plan.z[call])) for call in plan.x}


def _expected(manifest: Manifest) -> dict[str, Expected]:
    """What the file holds."""
    frame = manifest.graphs["keyframe"].inputs[0]
    known = {f"frame/{index}": Expected(frame.shape, ("int8",)) for index in range(FRAMES)}
    for cache in manifest.caches:
        known[f"memory/{cache.name}"] = Expected(cache.shape, ("int8" if cache.dtype == "float32" else cache.dtype,))
    known |= {f"{key}/scale": Expected((), ("float32",)) for key in known}
    for kind, graph in manifest.graphs.items():
        for tensor in graph.outputs:
            shape = tensor.shape if tensor.name in manifest.outputs else (sample_size(tensor.shape),)
            for index in range(FRAMES if kind == "keyframe" else FRAMES - 1):
                known[f"{kind}/{index}/{tensor.name}"] = Expected(shape)
    for cache in manifest.caches:
        if cache.source == FRAME:  # no output of the graph, but new memory all the same
            for index in range(FRAMES):
                known[f"keyframe/{index}/{cache.name}"] = Expected((sample_size(cache.shape),))
    for tensor in manifest.graphs["keyframe"].outputs[: len(manifest.outputs)]:
        known |= {f"stream/{index}/{tensor.name}": Expected(tensor.shape) for index in range(FRAMES)}
    return known


def _pack(array: Array) -> tuple[Array, Any]:
    """Integers and scale of a `_rounded` array; integers stay as they are, with scale 0."""
    if array.dtype != np.float32:
        return array, np.float32(0)
    scale = np.maximum(np.abs(array).max(), np.float32(1e-30)) / np.float32(127)
    return np.rint(array / scale).astype(np.int8), scale


def _unpack(array: Array, scale: Array) -> Array:
    return array * scale if scale else array


def _rounded(array: Array) -> Array:
    """The nearest array (float32) of 255 evenly spaced values."""
    integers, scale = _pack(array)
    return _unpack(integers, scale)
