"""Files and folders that appear whole, and what an earlier run left where a new one writes."""

from __future__ import annotations

from resq_plugin.files.earlier import set_aside
from resq_plugin.files.writing import (
    check_file,
    check_folder,
    json_text,
    write_json,
    write_text,
    written,
    written_folder,
    written_into,
)

__all__ = [
    "check_file",
    "check_folder",
    "json_text",
    "set_aside",
    "write_json",
    "write_text",
    "written",
    "written_folder",
    "written_into",
]
