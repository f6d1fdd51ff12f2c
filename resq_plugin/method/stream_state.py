"""What a layer does in a stream: its caches x_k and z_k, its calls, and its choices of bit widths."""

from __future__ import annotations

from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from resq_plugin.errors import StreamError
from resq_plugin.method.calls import Call, CountingExecutor
from resq_plugin.method.frame_calls import CallsChangedError, compare_calls
from resq_plugin.method.held import Held
from resq_plugin.method.keeping import Keeper
from resq_plugin.method.layer_cache import LayerCache, held_bytes
from resq_plugin.method.layers import LayerSettings, ResidualLayer
from resq_plugin.method.outside import is_running
from resq_plugin.method.paths import keyframe_path, residual_path
from resq_plugin.method.recompute import LoggedExecutor
from resq_plugin.method.refresh import Refresh
from resq_plugin.method.repeated_calls import RepeatedCalls
from resq_plugin.method.shared_tensors import SharedTensors
from resq_plugin.method.workspace import Workspace

__all__ = ["StreamState", "describe"]

FARTHEST = 256
"""Distance from the keyframe up to which choices are counted apart, so that an endless interval needs no memory."""


class StreamState(CountingExecutor, LoggedExecutor):
    """State of one stream and the executor that reads and writes it.

    A plain object: never a buffer, a parameter or part of a ``state_dict``. Caches are private copies, because
    the network around may work in place, and are keyed by layer and call, because layers may be reused in a frame.

    Attributes:
        order: layers with a residual path in the order in which this frame called them.
        keyframe_order: those of the last keyframe.
        refresh: which layers run their keyframe path in other frames than keyframes, where the schedule is spread.
    """

    def __init__(self, *, keep_graph: bool = False) -> None:
        CountingExecutor.__init__(self)
        LoggedExecutor.__init__(self)
        self.caches: dict[Call, LayerCache] = {}
        self.is_keyframe = True
        self.keep_graph = keep_graph
        self.position = -1
        self.counts: dict[tuple[int, str], Tensor] = {}
        self.choices: dict[str, Tensor] | None = None
        self.workspace = Workspace()
        self._past = Workspace(), Workspace()
        self.order: list[str] = []
        self.keyframe_order: tuple[str, ...] = ()
        self.refresh: Refresh | None = None
        self._repeated = RepeatedCalls()
        self._shared = SharedTensors()
        self._holder: FrameType | None = None

    def start_frame(self, position: int, holder: FrameType | None = None) -> None:
        """Begin the frame at that distance from its keyframe; a keyframe (0) forgets everything.

        Args:
            position: t.
            holder: the generator that opens the frame, if one does.
        """
        self.position, self.is_keyframe, self._holder = position, position == 0, holder
        self.calls.clear()
        self.order.clear()
        self._logs.clear()
        self._repeated.clear()
        self._shared.clear()
        if self.is_keyframe:
            self.caches.clear()
            if self.refresh is not None:
                self.refresh.set_work({})

    def end_frame(self, layers: Mapping[str, ResidualLayer], elsewhere: Mapping[int, LayerSettings]) -> None:
        """Compare what was called with the keyframe.

        Args:
            layers: of the model.
            elsewhere: settings, by identity, of layers that ran outside streams in other threads meanwhile.

        Raises:
            StreamError: no layer ran, or one that ran in another thread only.
            CallsChangedError: fewer layers ran than at the keyframe, or in another order.
        """
        hint = (
            "a stream is seen in the thread of its frame only. Run the model without nn.DataParallel and without "
            "threads of its own"
        )
        if not self.calls:
            msg = f"no ResQ layer of the model ran in this frame; {hint}, in every frame."
            raise StreamError(msg)
        missing = [
            name for name, layer in layers.items() if name not in self.calls and id(layer.settings) in elsewhere
        ]
        if self.is_keyframe and missing:
            msg = f"layer {missing[0]} ran in another thread; {hint}, or exclude=({missing[0]!r},)."
            raise StreamError(msg)
        if self.is_keyframe:
            self.keyframe_order = tuple(self.order)
            return
        name, change = compare_calls(self.order, self.keyframe_order, missing)
        if not change and (name := self._repeated.swapped()):
            change = f"calls of layer {name} with inputs of one shape have changed places since the keyframe"
        if change:
            msg = f"{change}. {_way_out(name)}"
            raise self._changed(msg)

    def _changed(self, message: str) -> CallsChangedError:
        error = CallsChangedError(message)
        error.owner = self
        return error

    def __call__(self, layer: ResidualLayer, x: Tensor, **options: Any) -> Tensor:
        """Run the next call of a layer in this frame."""
        if self._holder is not None and not is_running(self._holder):
            msg = (
                f"layer {layer.settings.name} was called while the generator {self._holder.f_code.co_name} waits in "
                "`with video.frame(...)`; compute there, z = model(frame), and yield z outside of the with block."
            )
            raise StreamError(msg)
        return super().__call__(layer, x, **options)

    def run(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Run one call of one layer, Eq. 5."""
        name = layer.settings.name
        if layer.settings.residual is None:
            self.log(name)
            return layer.keyframe(x, **options)
        self.order.append(name)
        if self.is_keyframe:
            self.log(name)
            return self._keyframe(layer, call, x, options)
        cache = self.caches.get(call)
        if cache is None:
            msg = f"layer {name} was called {call[1]} time(s) at the keyframe and more often now. {_way_out(name)}"
            raise self._changed(msg)
        held = cache.held_x
        found, expected = (x.shape, x.dtype, x.device), (held.data.shape, held.dtype, held.data.device)
        if found != expected:
            msg = (
                f"layer {name} got {describe(found)} but its keyframe was {describe(expected)}. Call "
                "video.start_interval() before such a frame."
            )
            raise self._changed(msg)
        if self._distance(name) == 0:
            self.log(name)
            return self._keyframe(layer, call, x, options)
        room = (None, None) if self._logs else self._past  # a log keeps what it is given
        memory = cache.held_x.values(room[0]), cache.held_z.values(room[1])
        self.log(name, memory)
        if (name, 1) in self.caches:
            self._repeated.add(name, x, memory[0])
        z, delta_hat, choice = residual_path(layer, x, memory, options, self.workspace)
        if choice is not None:
            self._record(layer, name, choice)
        if layer.settings.config.reference == "running":
            self.caches[call] = Keeper(keep_graph=self.keep_graph).updated(layer, cache, memory[0] + delta_hat, z)
        return z

    def _distance(self, name: str) -> int:
        """Frames since a layer took its references."""
        return self.position if self.refresh is None else self.refresh.distance(name, self.position)

    def _keyframe(self, layer: ResidualLayer, call: Call, x: Tensor, options: dict[str, Any]) -> Tensor:
        x_hat, z = keyframe_path(layer, x, options)
        keeper = Keeper(keep_graph=self.keep_graph)
        held_z = keeper.output(layer, z)
        self.caches[call] = LayerCache(self._reference(keeper, layer, x, x_hat), held_z)
        if self._may_share():
            self._shared.add(z, held_z, keeper.kind(layer, z, layer.settings.config.state.output_bits))
        if self.is_keyframe and self.refresh is not None:
            self.refresh.add(layer, x, z)
        return z

    def _reference(self, keeper: Keeper, layer: ResidualLayer, x: Tensor, x_hat: Tensor | None) -> Held:
        """What is kept of x_k or x̂_k, once for all layers that read it; a running reference is of its layer."""
        config = layer.settings.config
        if config.reference == "running" or not self._may_share():
            return keeper.reference(layer, x, x_hat)
        kind = keeper.kind(layer, x, config.state.reference_bits) if x_hat is None else "quantized"
        fresh = None
        for held, is_certain in self._shared.find(x, kind):
            if is_certain and x_hat is None:
                return held
            fresh = fresh or keeper.reference(layer, x, x_hat)
            if fresh.equals(held):
                return held
        fresh = fresh or keeper.reference(layer, x, x_hat)
        self._shared.add(x, fresh, kind)
        return fresh

    def _may_share(self) -> bool:
        """Whether nobody follows what is kept: gradients through time, a tracer, a compiler."""
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return not (self.keep_graph or is_traced or torch.compiler.is_compiling())

    def _record(self, layer: ResidualLayer, name: str, choice: Tensor) -> None:
        residual = layer.settings.residual
        pool = residual.pool if residual is not None else ()
        counts = torch.bincount(choice.flatten(), minlength=len(pool))
        key = min(self._distance(name), FARTHEST), name
        self.counts[key] = self.counts[key] + counts if key in self.counts else counts
        if self.choices is not None:
            bits = torch.tensor(pool, dtype=torch.uint8, device=choice.device)
            self.choices[name] = bits[choice.long()]

    def free(self) -> None:
        """Forget everything and free the memory."""
        self.caches.clear()
        for workspace in (self.workspace, *self._past):
            workspace.clear()

    def state_bytes(self) -> int:
        """Bytes that the caches hold."""
        return held_bytes(self.caches.values())


def _way_out(name: str) -> str:
    return (
        f"A network that changes its calls must start a new interval: video.start_interval(), or exclude=({name!r},)."
    )


def describe(signature: tuple[torch.Size, torch.dtype, torch.device]) -> str:
    """Return shape, type and device in words."""
    shape, dtype, device = signature
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')} on {device}"
