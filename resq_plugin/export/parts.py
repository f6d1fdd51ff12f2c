"""Every layer of a graph on its own, fed with the same made-up numbers in torch and in the graph.

Through a whole deep net a float sum in another order flips a rounding, and every flip moves the roundings behind it.
Here nothing is handed on: what a layer quantizes comes from made-up outputs of the layers before it, and what it
computes from a made-up quantized input. A difference is one of that very layer, or of what lies just before it.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resq_plugin.errors import ExportError
from resq_plugin.export.archive import Archive, Expected
from resq_plugin.export.difference import sample_size
from resq_plugin.export.manifest import PARTS
from resq_plugin.export.strict import one_line, parse_json, read_as, read_fields
from resq_plugin.files import json_text

__all__ = ["PARTS", "Cut", "Part", "check_parts", "cut_graph", "made_up", "read_parts", "write_parts"]

UNKNOWN = 2**28
"""Most elements of a tensor whose shape the graph does not tell."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Cut:
    """Where a graph is cut.

    Attributes:
        name: of the `Part`.
        value: name of the tensor.
        readers: who reads made-up numbers instead: first output of a node, and which of its inputs.
    """

    name: str
    value: str
    readers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Part:
    """A tensor at which a graph is cut, and what torch computes there.

    Attributes:
        name: layer, call and side: ``conv1@0.x`` is x̂ or δ̂ of the first call, ``conv1@0.z`` its output; or that of an
            output of the graph.
        expected: what torch computes, `sampled`.
        shape: of the whole tensor.
        lsb: step of its grid, the coarsest of a pool; None for floats.
        amplitude: of the made-up numbers that are handed on instead; 0 for an output of the graph.
        base: memory that they are added to: z_k, from which residual frames do not differ much.
        is_chosen: whether pixels choose, from a pool or a class, where a rounding may choose otherwise.
    """

    name: str
    expected: Array
    shape: tuple[int, ...]
    lsb: float | None = None
    amplitude: float = 0.0
    base: str | None = None
    is_chosen: bool = False

    def handed_on(self, memory: Mapping[str, Array]) -> NDArray[np.float32]:
        """What is handed on instead, given the float32 memory by name."""
        values = made_up(self.shape, self.name, self.amplitude)
        return values if self.base is None else memory[self.base] + values


def made_up(shape: Sequence[int], name: str, amplitude: float) -> NDArray[np.float32]:
    """Numbers in [-amplitude, amplitude], evenly distributed, that look random but are the same everywhere."""
    integers = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    for factor, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13), (0xC2B2AE3D, 16)):
        integers *= np.uint32(factor)
        integers ^= integers >> np.uint32(shift)
    values = (integers.astype(np.float64) / 2**31 - 1) * amplitude
    return values.astype(np.float32).reshape(shape)


def check_parts(path: Path, parts: Sequence[Part], cuts: Sequence[Cut], layers: Sequence[str]) -> None:
    """Compare the parts of a graph with the graph, before memory is taken for them.

    Args:
        path: of the graph.
        parts: of it.
        cuts: of it.
        layers: names of all layers; what each returns is a part, unless the graph has no weight of it.

    Raises:
        ExportError: parts are missing, or are not of this graph.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {
        value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    tensors = {cut.name: cut.value for cut in cuts}
    names = [part.name for part in parts]
    weights = {tensor.name for tensor in graph.initializer}
    ends = ".residual.weight" if path.stem == "residual" else ".weight"
    wrong = [
        f"{name}@0.z"
        for name in layers
        if name + ends in weights and not {f"{name}@0.z", f"new.{name}.z"}.intersection(names)  # only kept, or read
    ]
    wrong += [cut.name for cut in cuts if cut.name not in names]
    for part in parts:
        value = tensors.get(part.name, part.name)
        is_cut, is_given = part.name in tensors, part.amplitude > 0
        small = value not in shapes and math.prod(part.shape) <= UNKNOWN  # inference cannot see through some operators
        if is_cut != is_given or names.count(part.name) > 1 or not (small or shapes.get(value) == part.shape):
            wrong.append(part.name)
    if wrong:
        msg = f"{path.with_name(PARTS)} is not of {path.name}: {wrong[0]!r:.80} does not fit; export the model again."
        raise ExportError(msg)


def cut_graph(path: Path, cuts: Sequence[Cut]) -> bytes:
    """A graph whose cuts are outputs and whose readers read inputs ``<cut>.given``."""
    model = onnx.load(path, load_external_data=False)
    readers = {reader: f"{cut.name}.given" for cut in cuts for reader in cut.readers}
    for node in model.graph.node:
        for index in range(len(node.input)):
            if (node.output[0], index) in readers:
                node.input[index] = readers[node.output[0], index]
    unknown = onnx.TensorProto.FLOAT
    model.graph.input.extend(onnx.helper.make_tensor_value_info(f"{cut.name}.given", unknown, None) for cut in cuts)
    kept = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(value, unknown, None)
        for value in dict.fromkeys(cut.value for cut in cuts)
        if value not in kept
    )
    return bytes(model.SerializeToString())


def write_parts(path: Path, parts: Mapping[str, Sequence[Part]], cuts: Mapping[str, Sequence[Cut]]) -> None:
    """Write the parts and cuts of both graphs."""
    facts = {
        kind: {
            "parts": [{**dataclasses.asdict(part), "expected": None} for part in items],
            "cuts": [dataclasses.asdict(cut) for cut in cuts[kind]],
        }
        for kind, items in parts.items()
    }
    arrays = {f"{kind}/{part.name}": part.expected for kind, items in parts.items() for part in items}
    text = np.frombuffer(json_text(facts).encode(), np.uint8)
    np.savez_compressed(path, facts=text, **arrays)  # type: ignore[arg-type]


def read_parts(path: Path) -> tuple[dict[str, list[Part]], dict[str, list[Cut]]]:
    """Read what `write_parts` wrote.

    Raises:
        ExportError: the file is missing or damaged.
    """
    try:
        with Archive(path) as file:
            facts = parse_json(file.read("facts", Expected(None, ("uint8",))).tobytes())
            graphs = {kind: read_as(_Facts, values, kind) for kind, values in _object(facts).items()}
            parts = {kind: [_part(file, kind, entry) for entry in graph.parts] for kind, graph in graphs.items()}
    except Exception as error:  # a damaged archive raises whatever the reader stumbles over
        msg = f"{path} is missing or damaged ({type(error).__name__}: {one_line(error)}); export the model again."
        raise ExportError(msg) from error
    return parts, {kind: list(graph.cuts) for kind, graph in graphs.items()}


@dataclass(frozen=True)
class _Facts:
    """What the file says of one graph; parts are without what torch computes."""

    parts: tuple[Any, ...]
    cuts: tuple[Cut, ...]


def _object(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        msg = "facts are no object"
        raise ValueError(msg)
    return values


def _part(file: Archive, kind: str, entry: Any) -> Part:
    facts = {name: value for name, value in _object(entry).items() if name != "expected"}
    fields = read_fields(Part, facts, "part", without=("expected",))
    name, shape, lsb, amplitude = (fields[key] for key in ("name", "shape", "lsb", "amplitude"))
    if (
        any(not 1 <= side < 2**31 for side in shape)
        or (lsb is not None and not 0 < lsb < 1e33)
        or not 0 <= amplitude < 1e33
    ):
        msg = f"{name!r:.80} has shape {shape!r:.80}, lsb {lsb}, amplitude {amplitude}"
        raise ValueError(msg)
    return Part(**fields, expected=file.read(f"{kind}/{name}", Expected((sample_size(shape),))))
