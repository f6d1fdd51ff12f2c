"""Bridge to mmcv-lite: MMSeg, MMPose and MMDet import, and only a call of a compiled operator fails.

The toolkits import compiled mmcv operators at import time, also for models that use none of them. A source build
of mmcv takes a quarter of an hour and fails on recent PyTorch, so `install` lets such models run without it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

from resq_plugin.errors import ResQError

__all__ = ["MissingOperatorError", "install"]

logger = logging.getLogger(__name__)

EXTENSION = "mmcv._ext"
INSTALL_HINT = (
    "install the compiled mmcv in place of mmcv-lite: pip uninstall mmcv-lite && pip install 'mmcv>=2.0,<2.2'"
)

# Not operators but facts about the build, asked for by `mmcv.utils.collect_env`, which itself answers "n/a".
_FACTS = ("get_compiler_version", "get_compiling_cuda_version")


class MissingOperatorError(ResQError, NotImplementedError):
    """A compiled mmcv operator is called, but only mmcv-lite is installed."""


class _Placeholders(ModuleType):
    """Stands in for ``mmcv._ext``; each of its attributes is an operator that raises when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            # Introspection (inspect, doctest, pickle) asks every module for such names.
            raise AttributeError(name)
        operator = _fact if name in _FACTS else _missing(name)
        setattr(self, name, operator)
        return operator


def _fact() -> str:
    return "n/a"


def _missing(name: str) -> Callable[..., NoReturn]:
    def operator(*args: object, **kwargs: object) -> NoReturn:  # noqa: ARG001
        msg = (
            f"the compiled mmcv operator {name!r} is called, but mmcv-lite has no compiled operators; {INSTALL_HINT}."
        )
        raise MissingOperatorError(msg)

    operator.__name__ = operator.__qualname__ = name
    return operator


def install() -> bool:
    """Let MMSeg, MMPose and MMDet import with mmcv-lite; do nothing with the compiled mmcv.

    Call it before the first import of a toolkit. It may be called any number of times.

    Returns:
        Whether placeholders stand in for the compiled operators, by this call or an earlier one.

    Raises:
        ResQError: neither mmcv nor mmcv-lite is installed.
    """
    present = sys.modules.get(EXTENSION)
    if present is not None:
        return isinstance(present, _Placeholders)
    package = find_spec("mmcv")
    if package is None:
        msg = "mmcv is not installed; write: pip install 'mmcv-lite>=2.0,<2.2', which needs no compiler."
        raise ResQError(msg)
    if PathFinder.find_spec(EXTENSION, package.submodule_search_locations) is not None:  # without importing mmcv
        return False
    placeholders = _Placeholders(EXTENSION, "Placeholders of resq-plugin for the compiled operators of mmcv.")
    # Without a loader `mmengine.utils.dl_utils.mmcv_full_available` still tells the truth.
    placeholders.__spec__ = ModuleSpec(EXTENSION, loader=None)
    sys.modules[EXTENSION] = placeholders
    logger.debug("mmcv has no compiled operators: placeholders that raise on call are registered as %s", EXTENSION)
    return True
