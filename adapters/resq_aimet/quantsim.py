"""AIMET's `QuantizationSimModel` with ResQ as a scheme that its own configuration file switches on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aimet_torch
from torch import Tensor, nn

from resq_aimet.sim import ResQSim, convert
from resq_plugin.config import ResQConfig
from resq_plugin.errors import ConfigError

__all__ = ["QuantizationSimModel"]

SCHEME = "resq"
SECTION = "resq"


class QuantizationSimModel(aimet_torch.QuantizationSimModel):
    """Drop-in for `aimet_torch.QuantizationSimModel`; without the scheme and the section it is AIMET's, bit for bit.

    ResQ is switched on by ``quant_scheme="resq"``, or by a section in the JSON file that is passed to AIMET anyway::

        {"defaults": {...}, ..., "resq": {"precision": "W8A8->W4A4", "interval": 3, "placement": "hardware"}}

    The section has the settings of `ResQConfig`, and ``placement``. It is taken out, and the rest handed on.

    Attributes:
        resq: the `ResQSim` with ``compute_encodings(clips)``, ``stream()`` and ``export(dir, frames)``, or None.
    """

    resq: ResQSim | None

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Tensor | tuple[Tensor, ...],
        quant_scheme: Any = None,
        *args: Any,
        config_file: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        is_resq = isinstance(quant_scheme, str) and quant_scheme == SCHEME
        with _without_section(config_file) as (section, rest):
            settings = dict(section or {})
            placement = settings.pop("placement", "paper")
            config = ResQConfig.from_dict({**settings, "backend": "aimet"}) if is_resq or section is not None else None
            super().__init__(model, dummy_input, None if is_resq else quant_scheme, *args, config_file=rest, **kwargs)
        self.resq = None if config is None else convert(self, config, placement=placement)


@contextmanager
def _without_section(
    config_file: str | os.PathLike[str] | None,
) -> Iterator[tuple[Mapping[str, Any] | None, str | None]]:
    """Yield the section of a JSON file, None if it has none, and a file without it."""
    path = None if config_file is None else os.fspath(config_file)
    values = _read(path)
    if values is None or SECTION not in values:
        yield None, path
        return
    section = values.pop(SECTION)
    if not isinstance(section, Mapping):
        msg = f'{path}: "{SECTION}" is {section!r}; write an object such as {{"precision": "W8A8->W4A4"}}.'
        raise ConfigError(msg)
    with tempfile.TemporaryDirectory() as folder:
        rest = Path(folder) / "config.json"
        rest.write_text(json.dumps(values))
        yield section, str(rest)


def _read(path: str | None) -> dict[str, Any] | None:
    """The object in a JSON file; None for an alias of AIMET's and for what AIMET itself refuses to read."""
    if path is None or not Path(path).is_file():
        return None
    try:
        values = json.loads(Path(path).read_text())
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
