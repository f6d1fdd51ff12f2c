"""The command line: the program, its commands, and what commands share."""

from __future__ import annotations

from resq_plugin.cli.commands import Commands, Parser, add_command, missing, require
from resq_plugin.cli.output import write_json
from resq_plugin.cli.program import main

__all__ = ["Commands", "Parser", "add_command", "main", "missing", "require", "write_json"]
