"""ONNX Runtime sessions that compute what the simulation computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resq_plugin.errors import ConfigError, ExportError, nearest
from resq_plugin.export.manifest import HtpSpec, Manifest
from resq_plugin.extras import need

__all__ = ["DEVICES", "cpu_session", "integer_session", "open_session", "target_of"]

DEVICES = ("cpu", "htp")


def open_session(folder: Path, manifest: Manifest, kind: str, device: str, threads: int = 0) -> Any:
    """Open the graph ``keyframe`` or ``residual`` of a folder on a device.

    Raises:
        ConfigError: unknown device.
        ExportError: the device refuses the graph, or the folder was not exported for it.
    """
    if device == "cpu":
        return cpu_session(folder / f"{kind}.onnx", threads)
    from resq_plugin.export.htp.session import htp_session  # noqa: PLC0415

    spec = target_of(manifest, device)
    return htp_session(folder / "htp" / f"{kind}.onnx", spec.arch, spec.soc)  # type: ignore[union-attr]


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
        msg = f"ONNX Runtime cannot open {name}: {error}"
        raise ExportError(msg) from error


def integer_session(source: Path | bytes) -> Any:
    """Open a QDQ graph on the CPU exactly as it is written, to compare a target with."""
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = source if isinstance(source, bytes) else str(source)
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
