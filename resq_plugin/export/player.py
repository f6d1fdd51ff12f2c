"""A video through an exported folder with ONNX Runtime; no torch model is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_plugin.errors import ConfigError, FrameError
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.sessions import open_session, running, target_of
from resq_plugin.export.specs import FRAME
from resq_plugin.extras import need

__all__ = ["OrtStream"]

Array = NDArray[Any]


class OrtStream:
    """One video: call it with one frame after another.

    The memory between frames stays in ONNX Runtime's own tensors, which the keyframe graph writes and the residual
    graph reads in place.

    Attributes:
        manifest: what the folder holds.
        position: t of the last frame, 0 at a keyframe; -1 before the first frame.
        is_keyframe: whether the last frame was a keyframe.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "cpu",
        interval: int | None = None,
        threads: int = 0,
        manifest: Manifest | None = None,
    ) -> None:
        """Open a folder.

        Args:
            folder: written by `resq_plugin.export.export_model` or ``resq export``.
            device: ``cpu``, or ``htp`` for Qualcomm's HTP (a device, or its emulation on x86-64).
            interval: T, when it is to differ from the exported one.
            threads: of ONNX Runtime on the CPU; 0 lets it choose.
            manifest: that of the folder, if it was read and its files need no check of their checksums.

        Raises:
            ExportError: the folder is damaged, or the device refuses a graph.
            ConfigError: unknown device, or impossible interval.
        """
        self.folder = Path(folder)
        self.manifest = manifest or Manifest.read(self.folder)
        if manifest is None:
            self.manifest.check(self.folder)
        found = target_of(self.manifest, device)
        self.graphs, self.caches = found.graphs, found.caches
        self.interval = self.manifest.interval if interval is None else interval
        if not isinstance(self.interval, int) or self.interval < 1:
            msg = f"interval={interval!r} is not allowed; write a whole number of at least 1."
            raise ConfigError(msg)
        self._sessions = {
            kind: open_session(self.folder, self.manifest, kind, device, threads) for kind in self.graphs
        }
        self._memory, self._next = self.allocate(), self.allocate() if self._updates_memory else {}
        self.reset()

    def __enter__(self) -> OrtStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reset()

    @property
    def _updates_memory(self) -> bool:
        return any(spec.name.startswith("new.") for graph in self.graphs.values() for spec in graph.outputs)

    def allocate(self) -> dict[str, Any]:
        """New memory for one stream: cache name to `onnxruntime.OrtValue`."""
        new = need("onnxruntime", "export").OrtValue.ortvalue_from_shape_and_type
        with running(f"{self.folder} with {self.state_bytes() / 1e6:.0f} MB of memory"):
            return {cache.name: new(cache.shape, np.dtype(cache.dtype).type, "cpu", 0) for cache in self.caches}

    def reset(self) -> None:
        """Forget the video: the next frame is the first of a new one."""
        self._keyframe_input: Array | None = None
        self._demanded = True
        self.position, self.is_keyframe = -1, False

    def start_interval(self) -> None:
        """Make the next frame a keyframe."""
        self._demanded = True

    def state_bytes(self) -> int:
        """Bytes that the memory between frames takes."""
        return sum(cache.bytes for cache in self.caches)

    def memory_arrays(self) -> dict[str, Array]:
        """Copies of the memory as the float32 values it stands for, by cache name."""
        return {cache.name: cache.values(self._memory[cache.name].numpy()) for cache in self.caches}

    def __call__(self, frame: Array) -> Array | tuple[Array, ...]:
        """Run the next frame.

        Args:
            frame: (N, C, H, W) float32, of the exported shape.

        Returns:
            The model's output, or a tuple when it has several.

        Raises:
            FrameError: wrong shape or type, NaN or Inf; the stream is unchanged.
        """
        self._check(frame)
        frame = np.ascontiguousarray(frame)
        if self._starts_interval(frame):
            self._demanded = True  # until its memory is complete
            outputs = self.run("keyframe", frame, {}, self._memory)
            self._demanded, self.position = False, 0
            if self.manifest.scene_threshold is not None:
                self._keyframe_input = frame.copy()
        else:
            outputs = self.run("residual", frame, self._memory, self._next)
            if self._updates_memory:
                self._memory, self._next = self._next, self._memory
            self.position += 1
        self.is_keyframe = self.position == 0
        values = tuple(outputs.values())
        return values[0] if len(values) == 1 else values

    def run(self, kind: str, frame: Array, memory: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Array]:
        """Run one graph, whatever the position in the stream.

        Args:
            kind: ``keyframe`` or ``residual``.
            frame: (N, C, H, W) float32.
            memory: what the residual graph reads, from `allocate`.
            target: where new memory is written, in place; other than ``memory``.

        Returns:
            The model's outputs by name.
        """
        session, graph = self._sessions[kind], self.graphs[kind]
        binding = session.io_binding()
        for spec in graph.inputs:
            if spec.name == FRAME:
                binding.bind_cpu_input(FRAME, frame)
            else:
                binding.bind_ortvalue_input(spec.name, memory[spec.name])
        for spec in graph.outputs:
            if spec.name in self.manifest.outputs:
                binding.bind_output(spec.name)
            else:
                binding.bind_ortvalue_output(spec.name, target[spec.name.removeprefix("new.")])
        with running(f"the {kind} graph of {self.folder}"):
            session.run_with_iobinding(binding)
        values = dict(zip((spec.name for spec in graph.outputs), binding.get_outputs(), strict=True))
        for cache in self.caches:
            if kind == "keyframe" and cache.source == FRAME:
                target[cache.name].update_inplace(frame)
        return {name: values[name].numpy() for name in self.manifest.outputs}

    def _check(self, frame: object) -> None:
        expected = self.graphs["keyframe"].inputs[0]
        if not isinstance(frame, np.ndarray) or frame.shape != expected.shape or frame.dtype != expected.dtype:
            found = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
            msg = f"this export takes frames {expected.shape} {expected.dtype} (numpy); got {found}."
            raise FrameError(msg)
        if not np.isfinite(frame).all():
            msg = f"the frame after position {self.position} holds NaN or Inf; the stream is unchanged."
            raise FrameError(msg)

    def _starts_interval(self, frame: Array) -> bool:
        if self._demanded or self.position + 1 >= self.interval or "residual" not in self._sessions:
            return True
        threshold, keyframe = self.manifest.scene_threshold, self._keyframe_input
        return threshold is not None and keyframe is not None and _relative_change(frame, keyframe) > threshold


def _relative_change(frame: Array, keyframe: Array) -> float:
    """`resq_plugin.method.relative_change`, of the video that changed most."""
    x_t, x_k = (values.astype(np.float64).reshape(len(values), -1) for values in (frame, keyframe))
    spread = np.abs(x_k - x_k.mean(1, keepdims=True)).mean(1)
    return float((np.abs(x_t - x_k).mean(1) / np.maximum(spread, 1e-12)).max())
