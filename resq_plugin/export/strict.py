"""Values of a JSON file as frozen dataclasses, by the types of their fields and nothing else."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["load_json", "one_line", "parse_json", "read_as", "read_fields"]

LARGEST = 2**26
"""Bytes of a JSON file; that of a network of a thousand layers has two million."""

T = TypeVar("T")


def one_line(error: BaseException) -> str:
    """What an error of a library says, without line breaks and not too long."""
    return " ".join(str(error).split())[:400]


def load_json(path: Path) -> Any:
    """Read a JSON file of at most `LARGEST` bytes.

    Raises:
        ValueError: it is larger, or no JSON.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        msg = f"it has more than {LARGEST} bytes"
        raise ValueError(msg)
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """The values of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise ValueError(msg) from error


def read_as(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as a type: a dataclass, a tuple, a mapping, ``X | None``, str, int, float or bool.

    Nothing is converted but a whole number to a float, a list to a tuple and an object to a dataclass.

    Args:
        kind: the type.
        value: what was read.
        where: its place, for the message.

    Raises:
        ValueError: the value is none of that type, or a dataclass refuses it.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        (other,) = (item for item in inner if item is not types.NoneType)
        return None if value is None else read_as(other, value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        fields = read_fields(kind, value, where)
        try:
            return kind(**fields)
        except ValueError as error:
            msg = f"{where}: {error}"
            raise ValueError(msg) from error
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(read_as(item, entry, f"{where}[{index}]") for index, (item, entry) in pairs)
    if origin is Mapping and isinstance(value, dict):
        return {key: read_as(inner[1], entry, f"{where}[{key!r:.80}]") for key, entry in value.items()}
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    msg = f"{where} is {value!r:.80}"
    raise ValueError(msg)


def read_fields(kind: type, value: Any, where: str, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass from an object of JSON that has these and no others.

    Raises:
        ValueError: one is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        msg = f"{where} is {value!r:.80}"
        raise ValueError(msg)
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.name not in without]
    for name in (*names, *value):
        if name not in value or name not in names:
            msg = f"{where} has no {name!r:.80}" if name in names else f"{where} has an unknown {name!r:.80}"
            raise ValueError(msg)
    return {name: read_as(hints[name], value[name], f"{where}.{name}") for name in names}
