"""ONNX Runtime sessions that compute what the simulation computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resq_plugin.errors import ConfigError, ExportError, nearest
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.specs import GraphSpec, HtpSpec
from resq_plugin.export.strict import one_line
from resq_plugin.extras import need

__all__ = [
    "DEVICES",
    "check_session",
    "cpu_session",
    "integer_session",
    "open_session",
    "running",
    "target_of",
]

DEVICES = ("cpu", "htp")
_TYPES = {"float32": "float", "float64": "double"}


def open_session(folder: Path, manifest: Manifest, kind: str, device: str, threads: int = 0) -> Any:
    """Open the graph ``keyframe`` or ``residual`` of a folder on a device.

    Raises:
        ConfigError: unknown device.
        ExportError: the device refuses the graph, it is not what the manifest says, or the folder was not exported
            for the device.
    """
    spec, path = target_of(manifest, device), folder / f"{kind}.onnx"
    if isinstance(spec, HtpSpec):
        from resq_plugin.export.htp.session import htp_session  # noqa: PLC0415

        path = folder / "htp" / path.name
        session = htp_session(path, spec.arch, spec.soc)
    else:
        session = cpu_session(path, threads)
    check_session(session, spec.graphs[kind], path)
    return session


def target_of(manifest: Manifest, device: str) -> Manifest | HtpSpec:
    """What describes the graphs and the memory of a device.

    Raises:
        ConfigError: unknown device.
        ExportError: the folder was not exported for it.
    """
    if device not in DEVICES:
        msg = f"device={device!r} is not allowed; write one of {', '.join(DEVICES)}.{nearest(device, DEVICES)}"
        raise ConfigError(msg)
    if device == "cpu":
        return manifest
    if manifest.htp is None:
        msg = "the folder was not exported for the HTP; export it with --target htp (htp=HtpConfig())."
        raise ExportError(msg)
    return manifest.htp


def cpu_session(source: Path | bytes, threads: int = 0) -> Any:
    """Open a graph, a file or its contents, on the CPU.

    Quantizers stay nodes of their own: ONNX Runtime's fused integer kernels round elsewhere than the simulation, and
    on x86-64 without VNNI they saturate.
    """
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        model = source if isinstance(source, bytes) else str(source)
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base
        name = "a part of the graph" if isinstance(source, bytes) else source
        msg = f"ONNX Runtime cannot open {name}: {one_line(error)}"
        raise ExportError(msg) from error


def check_session(session: Any, graph: GraphSpec, path: Path) -> None:
    """Compare what a graph reads and returns with what the manifest says, before memory is taken for it.

    Raises:
        ExportError: they differ.
    """
    for found, expected in ((session.get_inputs(), graph.inputs), (session.get_outputs(), graph.outputs)):
        ours = [(value.name, tuple(value.shape), value.type) for value in found]
        theirs = [(spec.name, spec.shape, f"tensor({_TYPES.get(spec.dtype, spec.dtype)})") for spec in expected]
        for one, other in itertools.zip_longest(ours, theirs):
            if one != other:
                msg = f"{path} has {one!r:.120} where the manifest says {other!r:.120}; export the model again."
                raise ExportError(msg)


@contextmanager
def running(what: str) -> Iterator[None]:
    """Make an ExportError of one line of what ONNX Runtime raises inside."""
    try:
        yield
    except Exception as error:  # the runtime's exceptions share no base
        msg = f"ONNX Runtime cannot run {what}: {one_line(error)}"
        raise ExportError(msg) from error


def integer_session(source: Path | bytes) -> Any:
    """Open a QDQ graph on the CPU exactly as it is written, to compare a target with."""
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = source if isinstance(source, bytes) else str(source)
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
