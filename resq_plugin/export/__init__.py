"""From a ResQ model to two ONNX graphs, a player for them, and the proof that they compute what the model does.

Names are loaded when they are first used, so that the command line works without the extra ``export``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resq_plugin.extras import need

if TYPE_CHECKING:
    from resq_plugin.export.folder import export_model
    from resq_plugin.export.grid import Grid
    from resq_plugin.export.htp.build import HtpConfig
    from resq_plugin.export.htp.check import LAYER_LIMIT, HtpVerification, split_native, verify_htp
    from resq_plugin.export.player import OrtStream
    from resq_plugin.export.replaced import check_export_folder
    from resq_plugin.export.verification import Verification, verify

__all__ = [
    "LAYER_LIMIT",
    "Grid",
    "HtpConfig",
    "HtpVerification",
    "OrtStream",
    "Verification",
    "check_export_folder",
    "export_model",
    "split_native",
    "verify",
    "verify_htp",
]

_HOMES = {
    "LAYER_LIMIT": "htp.check",
    "Grid": "grid",
    "HtpConfig": "htp.build",
    "HtpVerification": "htp.check",
    "OrtStream": "player",
    "Verification": "verification",
    "check_export_folder": "replaced",
    "export_model": "folder",
    "split_native": "htp.check",
    "verify": "verification",
    "verify_htp": "htp.check",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        need(package, "export")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
