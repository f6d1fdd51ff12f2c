"""Encodings files as Qualcomm's converters read them (``--quantization_overrides``), in the schemas that AIMET writes.

0.6.1 and 1.0.0 list tensors with offsets of an unsigned grid (``real = (q + offset) * scale``, q from 0), 2.0.0
follows ONNX QuantizeLinear. Bit widths are the true ones, e.g. 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resq_plugin import __version__
from resq_plugin.errors import ConfigError, nearest
from resq_plugin.export.grid import Grid

__all__ = ["VERSIONS", "check_versions", "encodings_file"]

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")


def check_versions(versions: tuple[str, ...]) -> None:
    """Raise ConfigError unless every version is known."""
    for version in versions:
        if version not in VERSIONS:
            msg = f"encodings version {version!r} is not known; write some of {VERSIONS}.{nearest(version, VERSIONS)}"
            raise ConfigError(msg)


def encodings_file(
    version: str, activations: Mapping[str, Grid], weights: Mapping[str, Grid], biases: Mapping[str, Grid]
) -> dict[str, Any]:
    """The content of one encodings file.

    Args:
        version: one of `VERSIONS`.
        activations: tensor name to grid.
        weights: initializer name to grid.
        biases: initializer name to its 32-bit grid; only 2.0.0 holds those.
    """
    header = {"producer": {"package": "resq-plugin", "version": __version__}, "version": version}
    if version == "2.0.0":
        entries = [_entry_2(name, grid) for part in (activations, weights, biases) for name, grid in part.items()]
        return {**header, "encodings": entries}
    if version == "1.0.0":
        entry: Any = _entry_1
        parts = [[{"name": name, **entry(grid)} for name, grid in part.items()] for part in (activations, weights)]
        return {**header, "activation_encodings": parts[0], "param_encodings": parts[1], "excluded_layers": []}
    tables = [{name: _entry_06(grid) for name, grid in part.items()} for part in (activations, weights)]
    return {**header, "activation_encodings": tables[0], "param_encodings": tables[1], "excluded_layers": []}


def _offset(grid: Grid) -> int:
    return grid.low - grid.zero_point


def _is_symmetric(grid: Grid) -> bool:
    return grid.signed and grid.zero_point == 0


def _entry_06(grid: Grid) -> list[dict[str, Any]]:
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
    return [
        {
            "min": low * scale,
            "max": high * scale,
            "scale": scale,
            "offset": _offset(grid),
            "bitwidth": grid.bits,
            "dtype": "int",
            "is_symmetric": str(_is_symmetric(grid)),
        }
        for scale in grid.scale
    ]


def _entry_1(grid: Grid) -> dict[str, Any]:
    return {
        "dtype": "INT",
        "bw": grid.bits,
        "is_sym": _is_symmetric(grid),
        "scale": list(grid.scale),
        "offset": [_offset(grid)] * len(grid.scale),
        "enc_type": "PER_TENSOR" if grid.axis is None else "PER_CHANNEL",
    }


def _entry_2(name: str, grid: Grid) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "output_dtype": f"{'int' if grid.signed else 'uint'}{grid.bits}",
        "y_scale": grid.scale[0] if grid.axis is None else list(grid.scale),
    }
    if grid.zero_point:
        entry["y_zero_point"] = grid.zero_point
    if grid.axis is not None:
        entry["axis"] = grid.axis
    return entry
