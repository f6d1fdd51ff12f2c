"""Packages of an extra (``video``, ``report``, ``export``, ``htp``), loaded when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from resq_plugin.errors import MissingExtraError

__all__ = ["need"]


def need(module: str, extra: str = "report") -> Any:
    """Import a module of an extra.

    Raises:
        MissingExtraError: its package is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".", maxsplit=1)[0]
        if error.name is None or error.name.split(".", maxsplit=1)[0] != package:
            raise  # the package is there and broken: its own message tells more
        msg = f"{package} is not installed; write: pip install 'resq-plugin[{extra}]'"
        raise MissingExtraError(msg) from error
