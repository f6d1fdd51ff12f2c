"""``manifest.json``: what an exported folder holds, enough to run it without the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_plugin.errors import ExportError

__all__ = [
    "MANIFEST",
    "CacheSpec",
    "FileSpec",
    "GraphSpec",
    "HtpSpec",
    "LayerSpec",
    "Manifest",
    "TensorSpec",
    "digest",
]

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: its name in the graph.
        shape: static shape.
        dtype: numpy name, e.g. ``float32`` or ``int8``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class CacheSpec(TensorSpec):
    """A tensor of a stream's memory.

    Attributes:
        source: ``keyframe``, an output of that graph, or ``frame``, the keyframe itself.
        scale: s when it is held in integers, else None; they stand for ``scale * (integer - zero_point)``.
        zero_point: integer that stands for 0.
        bits: bits of its grid, 32 for float.
        layers: which layers read it, as residual reference (x) or past output (z).
    """

    source: str
    scale: float | None
    bits: int
    layers: tuple[str, ...]
    zero_point: int = 0

    def values(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """The float32 values that an array of it stands for, always a copy."""
        if self.scale is None:
            return array.astype(np.float32)
        values: NDArray[np.float32] = (array.astype(np.float32) - self.zero_point) * np.float32(self.scale)
        return values

    def integers(self, array: NDArray[np.float32]) -> NDArray[Any]:
        """What holds these values: the nearest integers, or the values themselves where it holds floats."""
        if self.scale is None:
            return array
        ends = np.iinfo(self.dtype)
        steps = np.rint(array / np.float32(self.scale)) + self.zero_point
        held: NDArray[Any] = np.clip(steps, ends.min, ends.max).astype(self.dtype)
        return held


@dataclass(frozen=True)
class GraphSpec:
    """One graph.

    Attributes:
        inputs: in order.
        outputs: in order; those of the model first.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class HtpSpec:
    """What Qualcomm's HTP runs: the graphs below ``htp/``, which hold their memory in integers.

    Attributes:
        arch: version of the HTP they were compiled for.
        soc: Qualcomm's number of the chip, if one was named.
        graphs: ``keyframe`` and ``residual``.
        caches: memory of a stream.
    """

    arch: int
    soc: int | None
    graphs: Mapping[str, GraphSpec]
    caches: tuple[CacheSpec, ...]


@dataclass(frozen=True)
class LayerSpec:
    """Precision of one layer, and the integer types that carry it in the QDQ graphs.

    Attributes:
        name: qualified name in the model.
        precision: the paper's notation.
        containers: of the weight and the quantizers of each path, e.g. ``{"keyframe": ("W int8", "A int8"),
            "residual": ("W int4", "A int8 (carries 4 bits, clipped)")}``.
    """

    name: str
    precision: str
    containers: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class FileSpec:
    """A file of the folder.

    Attributes:
        bytes: size.
        sha256: checksum.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in an exported folder.

    Attributes:
        versions: of resq-plugin and of the packages that wrote the folder.
        config: `ResQConfig.to_dict`.
        interval: T.
        scene_threshold: relative change of the frame that starts an interval early, if any.
        graphs: ``keyframe`` and, unless every frame is a keyframe, ``residual``.
        outputs: names of the model's own outputs.
        caches: memory of a stream.
        layers: every quantized layer.
        float_layers: linear layers that stay in float.
        htp: what Qualcomm's HTP runs, if the folder was exported for it.
        files: every other file of the folder, by relative path.
    """

    versions: Mapping[str, str]
    config: Mapping[str, Any]
    interval: int
    scene_threshold: float | None
    graphs: Mapping[str, GraphSpec]
    outputs: tuple[str, ...]
    caches: tuple[CacheSpec, ...]
    layers: tuple[LayerSpec, ...]
    float_layers: tuple[str, ...]
    htp: HtpSpec | None = None
    files: Mapping[str, FileSpec] = field(default_factory=dict)

    @property
    def state_bytes(self) -> int:
        """Bytes of memory that one stream holds between frames."""
        return sum(cache.bytes for cache in self.caches)

    def write(self, folder: Path) -> Manifest:
        """Write it beside the files of the folder, whose checksums it takes, and return what was written."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
        files = {path.relative_to(folder).as_posix(): FileSpec(path.stat().st_size, digest(path)) for path in paths}
        manifest = dataclasses.replace(self, files=files)
        values = {"format": "resq-plugin export", "version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
        for tensor, spec in zip(values["caches"], manifest.caches, strict=True):
            tensor["bytes"] = spec.bytes
        values["state_bytes"] = manifest.state_bytes
        (folder / MANIFEST).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            ExportError: there is none, or this release cannot read it.
        """
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["version"] != FORMAT_VERSION or values["format"] != "resq-plugin export":
                msg = f"{path} has version {values['version']}; this release reads version {FORMAT_VERSION}."
                raise ExportError(msg)
            names = {item.name for item in dataclasses.fields(cls)}
            rest = _shaped({key: value for key, value in values.items() if key in names})
            htp = values["htp"]
            rest |= {
                "htp": htp and HtpSpec(htp["arch"], htp["soc"], _graphs(htp["graphs"]), _caches(htp["caches"])),
                "graphs": _graphs(values["graphs"]),
                "caches": _caches(values["caches"]),
                "layers": tuple(_layer(layer) for layer in values["layers"]),
                "files": {name: FileSpec(**spec) for name, spec in values["files"].items()},
            }
            return cls(**rest)
        except FileNotFoundError as error:
            msg = (
                f"{folder} is no exported folder: it has no {MANIFEST}; write one with resq export or export_model()."
            )
            raise ExportError(msg) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{path} is damaged ({type(error).__name__}: {error}); export the model again."
            raise ExportError(msg) from error

    def check(self, folder: Path) -> None:
        """Compare the folder with the checksums.

        Raises:
            ExportError: a file is missing or was changed.
        """
        for name, spec in self.files.items():
            path = folder / name
            if not path.is_file():
                msg = f"{path} is missing; export the model again."
                raise ExportError(msg)
            if path.stat().st_size != spec.bytes or digest(path) != spec.sha256:
                msg = f"{path} was changed after the export (its checksum differs); export the model again."
                raise ExportError(msg)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shaped(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _layer(values: dict[str, Any]) -> LayerSpec:
    return LayerSpec(values["name"], values["precision"], _shaped(values["containers"]))


def _graphs(values: dict[str, Any]) -> dict[str, GraphSpec]:
    return {kind: GraphSpec(_tensors(graph["inputs"]), _tensors(graph["outputs"])) for kind, graph in values.items()}


def _caches(values: list[dict[str, Any]]) -> tuple[CacheSpec, ...]:
    return tuple(CacheSpec(**_shaped({k: v for k, v in cache.items() if k != "bytes"})) for cache in values)


def _tensors(values: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(**_shaped(value)) for value in values)
