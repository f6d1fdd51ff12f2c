"""Every layer of a graph on its own, fed with the same made-up numbers in torch and in the graph.

Through a whole deep net a float sum in another order flips a rounding, and every flip moves the roundings behind it.
Here nothing is handed on: what a layer quantizes comes from made-up outputs of the layers before it, and what it
computes from a made-up quantized input. A difference is one of that very layer, or of what lies just before it.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resq_plugin.errors import ExportError

__all__ = ["PARTS", "Cut", "Part", "cut_graph", "made_up", "read_parts", "write_parts"]

PARTS = "parts.npz"

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


def cut_graph(path: Path, cuts: Sequence[Cut]) -> bytes:
    """A graph whose cuts are outputs and whose readers read inputs ``<cut>.given``."""
    model = onnx.load(path)
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
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez_compressed(path, facts=text, **arrays)  # type: ignore[arg-type]


def read_parts(path: Path) -> tuple[dict[str, list[Part]], dict[str, list[Cut]]]:
    """Read what `write_parts` wrote.

    Raises:
        ExportError: the file is missing or damaged.
    """
    try:
        with np.load(path) as file:
            facts = json.loads(file["facts"].tobytes())
            parts = {
                kind: [
                    Part(**entry | {"expected": file[f"{kind}/{entry['name']}"], "shape": tuple(entry["shape"])})
                    for entry in values["parts"]
                ]
                for kind, values in facts.items()
            }
        cuts = {
            kind: [
                Cut(entry["name"], entry["value"], tuple((node, index) for node, index in entry["readers"]))
                for entry in values["cuts"]
            ]
            for kind, values in facts.items()
        }
    except Exception as error:  # a damaged archive raises whatever the reader stumbles over
        msg = f"{path} is missing or damaged ({type(error).__name__}: {error}); export the model again."
        raise ExportError(msg) from error
    return parts, cuts
