"""What commands write for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resq_plugin.files import write_text

__all__ = ["write_json"]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result for machines whole or not at all, making the folders above it.

    Raises:
        ResQError: the file cannot be written.
    """
    write_text(path, json.dumps(values, indent=2) + "\n")
