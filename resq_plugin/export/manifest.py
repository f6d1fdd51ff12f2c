"""``manifest.json``: what an exported folder holds, enough to run it without the model."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resq_plugin.errors import ExportError
from resq_plugin.export.specs import FRAME, CacheSpec, FileSpec, GraphSpec, HtpSpec, LayerSpec, TensorSpec
from resq_plugin.export.strict import load_json, read_as
from resq_plugin.files import json_text

__all__ = ["GOLDEN", "MANIFEST", "PARTS", "Manifest", "changed_files", "listed_files"]

MANIFEST, GOLDEN, PARTS = "manifest.json", "golden.npz", "parts.npz"
FORMAT, FORMAT_VERSION = "resq-plugin export", 1
FILE_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A file in the folder or in one below it, on every system."""


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
        files = {path.relative_to(folder).as_posix(): FileSpec(path.stat().st_size, _digest(path)) for path in paths}
        manifest = dataclasses.replace(self, files=files)
        values = {"format": FORMAT, "version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
        for tensor, spec in zip(values["caches"], manifest.caches, strict=True):
            tensor["bytes"] = spec.bytes
        values["state_bytes"] = manifest.state_bytes
        (folder / MANIFEST).write_text(json_text(values, indent=1) + "\n", encoding="utf-8")
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder. What it says fits together, and names only files inside the folder.

        Raises:
            ExportError: there is none, it is damaged, or this release cannot read it.
        """
        path = folder / MANIFEST
        try:
            values = load_json(path)
            if not isinstance(values, dict) or values.get("format") != FORMAT:
                msg = f"it has no format {FORMAT!r}"
                raise ValueError(msg)
            if values.get("version") != FORMAT_VERSION:
                msg = f"{path} has version {values.get('version')!r:.80}; this release reads version {FORMAT_VERSION}."
                raise ExportError(msg)
            return _read(values)
        except (FileNotFoundError, NotADirectoryError) as error:
            msg = (
                f"{folder} is no exported folder: it has no {MANIFEST}; write one with resq export or export_model()."
            )
            raise ExportError(msg) from error
        except (OSError, ValueError) as error:
            msg = f"{path} is damaged ({type(error).__name__}: {error}); export the model again."
            raise ExportError(msg) from error

    def check(self, folder: Path) -> None:
        """Compare the folder with the checksums.

        Raises:
            ExportError: a file is missing or was changed.
        """
        for name in self.files:
            if not (folder / name).is_file():
                msg = f"{folder / name} is missing; export the model again."
                raise ExportError(msg)
        for name in changed_files(folder, self.files):
            msg = f"{folder / name} was changed after the export (its checksum differs); export the model again."
            raise ExportError(msg)


def listed_files(folder: Path) -> dict[str, FileSpec] | None:
    """The files that an export of any release wrote into a folder, as its manifest says; None if it has none."""
    try:
        values = load_json(folder / MANIFEST)
        if values["format"] != FORMAT:
            return None
        files: dict[str, FileSpec] = read_as(Mapping[str, FileSpec], values["files"], "files")
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return files


def changed_files(folder: Path, files: Mapping[str, FileSpec]) -> list[str]:
    """Names of the files that are there and differ from what was written.

    Raises:
        ExportError: one cannot be read.
    """
    try:
        return [
            name
            for name, spec in files.items()
            if (path := folder / name).is_file()
            and (path.stat().st_size != spec.bytes or _digest(path) != spec.sha256)
        ]
    except OSError as error:
        msg = f"cannot read {error.filename or folder}: {error.strerror or error}."
        raise ExportError(msg) from error


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(values: dict[str, Any]) -> Manifest:
    """The manifest; what is in the file twice is compared."""
    rest = {key: value for key, value in values.items() if key not in ("format", "version", "state_bytes", "caches")}
    caches, sizes = [], []
    for cache in read_as(tuple[Mapping[str, Any], ...], values.get("caches"), "caches"):
        sizes.append(cache.get("bytes"))
        caches.append({key: value for key, value in cache.items() if key != "bytes"})
    manifest: Manifest = read_as(Manifest, {**rest, "caches": caches}, "manifest")
    for cache, size in zip(manifest.caches, sizes, strict=True):
        _refuse(size != cache.bytes, f"{cache.name!r:.80} has {cache.bytes} bytes, not {size!r:.80}")
    _refuse(values.get("state_bytes") != manifest.state_bytes, f"state_bytes is not {manifest.state_bytes}")
    _check_files(manifest)
    _refuse(not 1 <= manifest.interval < 2**31, f"interval is {manifest.interval!r:.80}")
    threshold = manifest.scene_threshold
    _refuse(threshold is not None and threshold < 0, f"scene_threshold is {threshold}")
    _check_graphs(manifest.graphs, manifest.caches, manifest.outputs)
    if manifest.htp is not None:
        _refuse(manifest.htp.graphs.keys() != manifest.graphs.keys(), "the HTP has other graphs")
        pairs = [
            [(cache.name, cache.shape, cache.source) for cache in owner.caches] for owner in (manifest, manifest.htp)
        ]
        _refuse(pairs[0] != pairs[1], "the HTP has other memory")
        _check_graphs(manifest.htp.graphs, manifest.htp.caches, manifest.outputs)
    names = [layer.name for layer in manifest.layers]
    _refuse(not names or len(set(names)) != len(names), "layers are missing or occur twice")
    return manifest


def _check_files(manifest: Manifest) -> None:
    for name in manifest.files:
        _refuse(not FILE_NAME.fullmatch(name) or name == MANIFEST, f"{name!r:.80} is no file of an export")
    needed = {GOLDEN, PARTS, *(f"{kind}.onnx" for kind in manifest.graphs)}
    if manifest.htp is not None:
        needed |= {f"htp/{kind}.onnx" for kind in manifest.htp.graphs}
    for name in sorted(needed - manifest.files.keys()):
        _refuse(True, f"files does not list {name!r:.80}")


def _check_graphs(graphs: Mapping[str, GraphSpec], caches: tuple[CacheSpec, ...], outputs: tuple[str, ...]) -> None:
    """Both graphs, the memory and the outputs are of one network."""
    _refuse("keyframe" not in graphs or graphs.keys() - {"keyframe", "residual"}, f"graphs are {list(graphs)!r:.80}")
    keyframe, residual = graphs["keyframe"], graphs.get("residual")
    frame = keyframe.inputs[0] if len(keyframe.inputs) == 1 else None
    _refuse(
        frame is None or frame.name != FRAME or frame.dtype != "float32" or len(frame.shape) != 4,
        f"the keyframe graph reads {keyframe.inputs!r:.80}",
    )
    memory = {cache.name: (cache.shape, cache.dtype) for cache in caches}
    _refuse(len(memory) != len(caches) or bool(memory) != (residual is not None), "memory and graphs do not fit")
    for cache in caches:
        if cache.source == FRAME:
            _refuse((cache.shape, cache.dtype) != _kind(frame), f"{cache.name!r:.80} is not like the frame")
    written = {cache.name: (cache.shape, cache.dtype) for cache in caches if cache.source != FRAME}
    _check_outputs("keyframe", keyframe, outputs, written)
    if residual is None:
        return
    known = {FRAME: _kind(frame), **memory}
    _refuse(len(known) == len(memory), "a memory has the name of the frame")
    for tensor in residual.inputs:
        _refuse(known.get(tensor.name) != _kind(tensor), f"the residual graph reads {tensor!r:.120}")
    new = {f"new.{name}": kind for name, kind in memory.items()}
    updates = len(residual.outputs) > len(outputs)
    _check_outputs("residual", residual, outputs, new if updates else {})
    for ours, theirs in zip(keyframe.outputs, residual.outputs[: len(outputs)], strict=False):
        _refuse(ours != theirs, f"the graphs return {ours!r:.120} and {theirs!r:.120}")


def _check_outputs(
    name: str, graph: GraphSpec, outputs: tuple[str, ...], memory: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """A graph returns the model's outputs, then this memory."""
    found = [tensor.name for tensor in graph.outputs]
    _refuse(not outputs or found[: len(outputs)] != list(outputs), f"the {name} graph returns {found!r:.80}")
    rest = {tensor.name: _kind(tensor) for tensor in graph.outputs[len(outputs) :]}
    _refuse(rest != memory, f"the {name} graph returns other memory: {list(rest)!r:.80}")


def _kind(tensor: TensorSpec | None) -> tuple[tuple[int, ...], str]:
    return ((), "") if tensor is None else (tensor.shape, tensor.dtype)


def _refuse(condition: object, text: str) -> None:
    if condition:
        raise ValueError(text)
