"""The command line: the program, its commands, and what commands share."""

from __future__ import annotations

from resq_plugin.cli.program import main, write_json

__all__ = ["main", "write_json"]
