"""Who holds the quantizers: plain torch here, host toolkits through the entry-point group ``resq_plugin.backends``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Protocol, cast

from torch import nn

from resq_plugin.errors import ConversionError, MissingExtraError, nearest
from resq_plugin.method import LayerSettings

__all__ = ["GROUP", "Backend", "find_backend"]

GROUP = "resq_plugin.backends"


class Backend(Protocol):
    """What a backend module offers."""

    def supports(self, module: nn.Module) -> bool:
        """Whether the layer can be converted."""
        ...

    def attach(self, module: nn.Module, settings: LayerSettings) -> None:
        """Turn the layer into a `ResidualLayer` in place, keeping its Parameters."""
        ...

    def detach(self, module: nn.Module) -> None:
        """Undo `attach`."""
        ...


@cache
def find_backend(name: str) -> Backend:
    """Load the backend of that name.

    Raises:
        ConversionError: no installed package registers it; those found are listed.
        MissingExtraError: the toolkit that it is of is not installed; the message names the extra.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        msg = f"backend={name!r} is not installed; found {', '.join(sorted(found))}.{nearest(name, found)}"
        raise ConversionError(msg)
    entry = found[name]
    try:
        return cast(Backend, entry.load())
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "resq_plugin", entry.module.partition(".")[0]):
            raise
        is_ours = entry.dist is not None and entry.dist.name == "resq-plugin"
        install = f"'resq-plugin[{name}]'" if is_ours else package
        msg = f"backend={name!r} needs {package}, which is not installed; write: pip install {install}"
        raise MissingExtraError(msg) from error
