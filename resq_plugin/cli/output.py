"""What commands write for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resq_plugin.errors import ResQError

__all__ = ["write_json"]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result for machines, making the folders above it.

    Raises:
        ResQError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}; give --json a file in a folder you may write to."
        raise ResQError(msg) from error
