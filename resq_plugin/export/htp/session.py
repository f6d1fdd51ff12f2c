"""Sessions on Qualcomm's HTP through its ONNX Runtime plugin, with every fallback switched off."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from resq_plugin.errors import ExportError
from resq_plugin.extras import need

__all__ = ["RefusedError", "htp_session"]

PROVIDER = "QNNExecutionProvider"
_HINT = "It runs 8- and 16-bit activations, 4- and 8-bit weights and static shapes; replace these in the network."
_HINTS = {
    "Where": "The choice of a dynamic pool does not run there; export a static residual such as W8A8->W4A8.",
    "LayerNormalization": "Use a normalization that folds, such as batch norm, or run this network on the CPU.",
}
_UNSUPPORTED = re.compile(r"Unsupported nodes in QNN EP: (.*)")
_NODE = re.compile(r"\{ name: (.*?), type: (\w+)")


class RefusedError(ExportError):
    """The target refuses operators of a graph.

    Attributes:
        nodes: their names and types.
    """

    def __init__(self, message: str, nodes: tuple[tuple[str, str], ...]) -> None:
        super().__init__(message)
        self.nodes = nodes


@cache
def _device() -> Any:
    runtime, plugin = need("onnxruntime", "htp"), need("onnxruntime_qnn", "htp")
    runtime.register_execution_provider_library(PROVIDER, plugin.get_library_path())
    return next(device for device in runtime.get_ep_devices() if device.ep_name == PROVIDER)


def htp_session(path: Path, arch: int, soc: int | None = None, *, context: Path | None = None) -> Any:
    """Compile a graph for the HTP and open it.

    Args:
        path: QDQ graph with static shapes.
        arch: version of the HTP, e.g. 75.
        soc: Qualcomm's number of the chip, which the compiler may use, e.g. 57.
        context: where to write the compiled graph: an ONNX file that names a binary beside it.

    Raises:
        RefusedError: operators are not supported, with their names and what to do.
        ExportError: the compiler fails otherwise.
        MissingExtraError: onnxruntime-qnn is not installed.
    """
    runtime, plugin = need("onnxruntime", "htp"), need("onnxruntime_qnn", "htp")
    device = _device()
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if context is not None:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(context))
    settings = {"backend_path": plugin.get_qnn_htp_path(), "htp_arch": str(arch)}
    if soc is not None:
        settings["soc_model"] = str(soc)
    options.add_provider_for_devices([device], settings)
    with _captured_stderr() as log:
        try:
            return runtime.InferenceSession(str(path), options)
        except Exception as error:  # the runtime's exceptions share no base
            failure = error
    nodes = _refused(log[0])
    if not nodes and "fallback to CPU EP" in str(failure):  # it takes nothing of the graph, and names nothing then
        nodes = tuple((node.name, node.op_type) for node in onnx.load(path).graph.node)
    if not nodes:
        msg = f"the HTP compiler cannot take {path}: {failure}"
        raise ExportError(msg) from failure
    names = ", ".join(f"{kind} {name}" for name, kind in nodes)
    hints = dict.fromkeys(_HINTS.get(kind, _HINT) for _, kind in nodes)
    msg = f"the HTP refuses these operators of {path.name}: {names}. {' '.join(hints)}"
    raise RefusedError(msg, nodes) from failure


def _refused(log: str) -> tuple[tuple[str, str], ...]:
    found = [line for line in _UNSUPPORTED.findall(log) if "name:" in line]
    return tuple(dict.fromkeys(node for line in found for node in _NODE.findall(line)))


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """What native code writes to the error stream inside, in a list of one."""
    log = [""]
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            log[0] = file.read().decode(errors="replace")
