"""An STM as ONNX graphs: `memorize` and `segment`, each a keyframe and a residual graph with caches.

A graph has one input, so what a step reads is packed: a frame with its mask planes as channels, and a frame with the
bank in a row. The bank is yours; it has a fixed capacity, and places that are not in use yet are switched off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resq_plugin.errors import ExportError
from resq_plugin.export import OrtStream, Verification, export_model, verify
from resq_plugin.files import write_json
from resq_vos.bank import Bank, Readable, read_memory, repeated
from resq_vos.masks import mask_planes, pad
from resq_vos.step import SegmentationStep
from resq_vos.stm import STM

__all__ = ["OrtSTM", "StmSpec", "export_stm", "verify_stm"]

SPEC = "stm.json"
OFF = 1e4
"""Taken from the affinity of places of the bank that are not in use."""


@dataclass(frozen=True)
class StmSpec:
    """Shapes that the graphs keep.

    Attributes:
        size: (H, W) of frames.
        objects: R.
        capacity: frames that the bank has room for.
        grid: (h, w) of memory.
        key: channels of keys.
        value: channels of values.
    """

    size: tuple[int, int]
    objects: int
    capacity: int
    grid: tuple[int, int]
    key: int
    value: int

    @property
    def places(self) -> int:
        """P, positions in the bank."""
        return self.capacity * self.grid[0] * self.grid[1]

    @property
    def lengths(self) -> tuple[int, int, int, int]:
        """Elements of frame, keys, values and switches in a packed input."""
        rows = self.objects * self.places
        return 3 * self.size[0] * self.size[1], rows * self.key, rows * self.value, rows


class _Memorize(nn.Module):
    """(R, 5, H, W), frame and mask planes, to keys and values (R, C, h, w)."""

    def __init__(self, model: STM) -> None:
        super().__init__()
        self.memory, self.memory_key, self.memory_value = model.memory, model.memory_key, model.memory_value

    def forward(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Run the memory encoder."""
        feature = self.memory(pad(packed[:, :3]), pad(packed[:, 3:]), torch.arange(packed.shape[0]))[-1]
        return self.memory_key(feature), self.memory_value(feature)


@dataclass(frozen=True)
class _Slots:
    """A bank of fixed capacity; ``used`` (R, P) is 1 where something is remembered."""

    keys: Tensor
    values: Tensor
    used: Tensor
    owners: None = None

    def read(self, query: Tensor) -> Tensor:
        query = repeated(query, self.keys.shape[0])
        switch = (1 - self.used)[:, None] * -OFF
        return read_memory(query, self.keys, self.values, switch)


class _Segment(nn.Module):
    """(1, 1, 1, L), a frame and the bank in a row, to log-odds (R, H, W)."""

    def __init__(self, model: STM, spec: StmSpec) -> None:
        super().__init__()
        for name in ("query", "query_key", "query_value", "top", "top_residual", "refine8", "refine4", "predict"):
            setattr(self, name, getattr(model, name))
        self.config, self.spec = model.config, spec

    def forward(self, packed: Tensor) -> Tensor:
        """Run the query encoder, the memory read and the decoder."""
        spec = self.spec
        frame, keys, values, used = packed.flatten().split(spec.lengths)
        bank = _Slots(
            keys.reshape(spec.objects, spec.key, spec.places),
            values.reshape(spec.objects, spec.value, spec.places),
            used.reshape(spec.objects, spec.places),
        )
        return STM.segment(self, frame.reshape(1, 3, *spec.size), bank)  # type: ignore[arg-type]


def pack_memorize(step_frame: Tensor, masks: Tensor) -> Tensor:
    """Frame (1, 3, H, W) and probabilities (R, H, W) to (R, 5, H, W)."""
    return torch.cat([step_frame.expand(masks.shape[0], -1, -1, -1), mask_planes(masks)], dim=1).contiguous()


def pack_segment(frame: Tensor, bank: Bank, spec: StmSpec) -> Tensor:
    """Frame (1, 3, H, W) and a bank to (1, 1, 1, L).

    Raises:
        ExportError: the bank remembers more frames than there is room for, or other objects.
    """
    stacked = bank.stacked()
    rows, _, places = stacked.keys.shape
    if rows != spec.objects or places > spec.places:
        found = places // (spec.grid[0] * spec.grid[1])
        msg = (
            f"the graphs were exported for {spec.objects} object(s) and {spec.capacity} remembered frames; the bank "
            f"has {rows} and {found}. Remember fewer (every=...), forget old ones, or export with capacity={found}."
        )
        raise ExportError(msg)
    free = spec.places - places
    parts = frame, F.pad(stacked.keys, (0, free)), F.pad(stacked.values, (0, free))
    used = F.pad(torch.ones(rows, places), (0, free))
    return torch.cat([part.flatten() for part in (*parts, used)]).view(1, 1, 1, -1)


def export_stm(
    model: STM, steps: Sequence[SegmentationStep], folder: str | os.PathLike[str], *, capacity: int = 8, **options: Any
) -> StmSpec:
    """Write ``memorize/`` and ``segment/``, each as `resq_plugin.export.export_model` does, and ``stm.json``.

    Args:
        model: converted and calibrated, on the CPU.
        steps: consecutive recorded steps of one video, whose shapes and number of objects the graphs keep; they
            become the golden clips.
        folder: where to write.
        capacity: frames that the bank has room for, the one before included.
        options: of `export_model`, such as ``encodings``.

    Raises:
        ExportError: no step, or what `export_model` refuses.
    """
    if not steps or len({(step.frame.shape, step.objects) for step in steps}) != 1 or steps[0].frame.shape[0] != 1:
        msg = "export_stm takes recorded steps of one video, whose objects stay the same; see record_clips."
        raise ExportError(msg)
    size = (steps[0].frame.shape[-2], steps[0].frame.shape[-1])
    grid = (-(-size[0] // 16), -(-size[1] // 16))
    spec = StmSpec(size, len(steps[0].objects), capacity, grid, model.config.key, model.config.value)
    folder = Path(folder)
    memorized = [pack_memorize(step.previous, step.masks) for step in steps]
    with torch.no_grad():
        banks = [step.run(model)[1] for step in steps]
    segmented = [pack_segment(step.frame, bank, spec) for step, bank in zip(steps, banks, strict=True)]
    export_model(_Memorize(model).eval(), memorized, folder / "memorize", **options)
    export_model(_Segment(model, spec).eval(), segmented, folder / "segment", **options)
    write_json(folder / SPEC, asdict(spec), ExportError)
    return spec


def verify_stm(folder: str | os.PathLike[str]) -> dict[str, Verification]:
    """Compare both parts with torch, layer by layer in LSB, see `resq_plugin.export.verify`."""
    return {part: verify(Path(folder) / part) for part in ("memorize", "segment")}


class OrtSTM:
    """The exported parts as a model for `Propagation`, which owns the bank; no torch network is needed.

    Attributes:
        spec: shapes of the export.
        parts: the two players, ``memorize`` and ``segment``; they count keyframes in step.
    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Open a folder of `export_stm`; options as of `OrtStream`.

        Raises:
            ExportError: the folder is damaged.
        """
        folder = Path(folder)
        try:
            values = json.loads((folder / SPEC).read_text(encoding="utf-8"))
            self.spec = StmSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except (OSError, ValueError, TypeError) as error:
            msg = f"{folder / SPEC} is missing or damaged ({error}); export the model again."
            raise ExportError(msg) from error
        self.parts = {part: OrtStream(folder / part, **options) for part in ("memorize", "segment")}

    def reset(self) -> None:
        """Begin a new video."""
        for part in self.parts.values():
            part.reset()

    def memorize(self, frame: Tensor, masks: Tensor, owners: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Frame (1, 3, H, W) and probabilities (R, H, W) to keys and values (R, C, h, w)."""
        found, expected = (tuple(frame.shape), masks.shape[0]), ((1, 3, *self.spec.size), self.spec.objects)
        if found != expected:
            msg = (
                f"the graphs were exported for frames {expected[0]} with {expected[1]} object(s); got {found[0]} with "
                f"{found[1]}. Export the model again for those."
            )
            raise ExportError(msg)
        keys, values = self.parts["memorize"](pack_memorize(frame, masks).numpy())
        return torch.from_numpy(keys.copy()), torch.from_numpy(values.copy())

    def segment(self, frame: Tensor, bank: Readable) -> Tensor:
        """Frame (1, 3, H, W) and a `Bank` to log-odds (R, H, W)."""
        if not isinstance(bank, Bank):
            msg = f"exported parts read a resq_vos.Bank; got {type(bank).__name__}."
            raise ExportError(msg)
        return torch.from_numpy(self.parts["segment"](pack_segment(frame, bank, self.spec).numpy()).copy())

    def state_bytes(self) -> int:
        """Bytes of the caches of both parts."""
        return sum(part.state_bytes() for part in self.parts.values())
