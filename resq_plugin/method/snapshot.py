"""What the next frame of a stream depends on, as plain values that move between streams of one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from resq_plugin.config import ResQConfig
from resq_plugin.errors import StreamError
from resq_plugin.method.conditions import Conditions
from resq_plugin.method.held import Held
from resq_plugin.method.held_grid import HeldGrid
from resq_plugin.method.layer_cache import LayerCache
from resq_plugin.method.layers import ResidualLayer

__all__ = ["Snapshot", "precisions_of", "reference_of"]

KEPT = ("reference_bits", "output_bits")


@dataclass(frozen=True)
class Snapshot:
    """A stream between two frames.

    Attributes:
        position: t of the last frame.
        is_keyframe: whether it was a keyframe.
        demanded: whether the next frame must be one.
        keyframe_input: the image of the last keyframe, (N, C, H, W).
        reference: of the configuration, with the bits of the state.
        precisions: of every layer.
        numbers: checksum of weights and ranges.
        order: layers in the order of the keyframe's calls.
        caches: by layer and call.
        work: of every layer, where the schedule is spread; see `Refresh`.
    """

    position: int
    is_keyframe: bool
    demanded: bool
    keyframe_input: Tensor | None
    reference: str
    precisions: Mapping[str, str]
    numbers: Any
    order: tuple[str, ...]
    caches: Mapping[Any, LayerCache]
    work: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with copies of every tensor."""
        return {
            "position": self.position,
            "is_keyframe": self.is_keyframe,
            "demanded": self.demanded,
            "keyframe_input": None if self.keyframe_input is None else self.keyframe_input.clone(),
            "reference": self.reference,
            "precisions": dict(self.precisions),
            "numbers": self.numbers,
            "order": list(self.order),
            **_written(self.caches),
            "work": dict(self.work),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Snapshot:
        """Read what `to_dict` returned; tensors are copied.

        Raises:
            StreamError: it is something else.
        """
        try:
            keyframe_input = state["keyframe_input"]
            return cls(
                position=state["position"],
                is_keyframe=state["is_keyframe"],
                demanded=state["demanded"],
                keyframe_input=None if keyframe_input is None else keyframe_input.clone(),
                reference=state["reference"],
                precisions=dict(state["precisions"]),
                numbers=state["numbers"],
                order=tuple(state["order"]),
                caches=_read(state["caches"], state["grids"]),
                work=dict(state["work"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"this is no state of a stream ({error!r}); pass what video.get_state() returned."
            raise StreamError(msg) from error

    def require_model(self, layers: Mapping[str, ResidualLayer], config: ResQConfig, conditions: Conditions) -> None:
        """Refuse the state of another model.

        Raises:
            StreamError: layers, reference, precision, weights or ranges differ; the first is named.
        """
        unknown = sorted({name for name, _ in self.caches} - set(layers))
        if unknown:
            msg = f"the state is of another model: it has layer {unknown[0]}, which this model has not."
            raise StreamError(msg)
        conditions.require_same_model()
        own = precisions_of(layers)
        differing = [f"layer {name} {text}" for name, text in self.precisions.items() if own.get(name) != text]
        if self.reference != reference_of(config):
            differing = [f"reference={self.reference!r}", *differing]
        if not differing and self.numbers != conditions.numbers.checksum():
            differing = ["other weights or ranges"]
        if differing:
            msg = (
                f"the state is of a model with {differing[0]}, this one is {config} with "
                f"reference={reference_of(config)!r}; a state moves between copies of one model only."
            )
            raise StreamError(msg)


def reference_of(config: ResQConfig) -> str:
    """What residuals are differences to, and how it is kept unless in floats, as text."""
    bits = [f"{key}={value}" for key in KEPT if (value := getattr(config.state, key)) is not None]
    return f"{config.reference} ({', '.join(bits)})" if bits else config.reference


def precisions_of(layers: Mapping[str, ResidualLayer]) -> dict[str, str]:
    """Keyframe and residual precision of every layer, as text."""
    return {name: f"{layer.settings.keyframe}->{layer.settings.residual}" for name, layer in layers.items()}


def _written(caches: Mapping[Any, LayerCache]) -> dict[str, Any]:
    """Copies of tensors or integers by call, and of the grids of integers; what calls share is one copy."""
    copies: dict[int, Held] = {}

    def copy(held: Held) -> Held:
        if id(held) not in copies:
            copies[id(held)] = held.clone()
        return copies[id(held)]

    pairs = {key: (copy(cache.held_x), copy(cache.held_z)) for key, cache in caches.items()}
    return {
        "caches": {key: tuple(held.data for held in pair) for key, pair in pairs.items()},
        "grids": {key: tuple(_grid_to_dict(held) for held in pair) for key, pair in pairs.items()},
    }


def _grid_to_dict(held: Held) -> dict[str, Any] | None:
    grid = held.grid
    if grid is None:
        return None
    values = {item.name: getattr(grid, item.name) for item in dataclasses.fields(grid)}
    return {**values, "values": held.dtype}


def _read(tensors: Mapping[Any, Any], grids: Mapping[Any, Any]) -> dict[Any, LayerCache]:
    """The caches of which `_written` made these values."""
    copies: dict[int, Held] = {}

    def held(data: Tensor, grid: Mapping[str, Any] | None) -> Held:
        if id(data) not in copies:
            values = dict(grid or {})
            dtype = values.pop("values", data.dtype)
            copies[id(data)] = Held(data, dtype, HeldGrid(**values) if values else None).clone()
        return copies[id(data)]

    return {
        key: LayerCache(*(held(data, grid) for data, grid in zip(pair, grids[key], strict=True)))
        for key, pair in tensors.items()
    }
