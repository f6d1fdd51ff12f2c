"""Finding commands: the entry-point group ``resq_plugin.commands``, name to a function ``add(commands)``.

``add`` lies in a module that is light to import. It calls `add_command`, adds arguments and sets ``run``, a function
of the parsed arguments and the console that returns the exit code (0 done, 2 the user can put it right); what is heavy
is imported there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import NoReturn, TypeAlias

from resq_plugin.errors import MissingExtraError

__all__ = [
    "GROUP",
    "INTERRUPTED",
    "USER_ERROR",
    "Commands",
    "Parser",
    "add_command",
    "add_commands",
    "missing",
    "require",
]

GROUP = "resq_plugin.commands"
USER_ERROR = 2
INTERRUPTED = 130
"""As a shell has it: 128 and the number of the signal."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Exit with that line on stderr."""
        self.exit(USER_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What ``add_subparsers`` returns."""


def missing(needs: Mapping[str, str]) -> str:
    """Return how to install what is not there, or an empty string; nothing is imported.

    Args:
        needs: package to the extra of resq-plugin that brings it.
    """
    extras = dict.fromkeys(extra for package, extra in needs.items() if find_spec(package) is None)
    return f"pip install 'resq-plugin[{','.join(extras)}]'" if extras else ""


def require(command: str, install: str) -> None:
    """Refuse to run a command that lacks packages.

    Args:
        command: its name.
        install: what `missing` returned.

    Raises:
        MissingExtraError: something is missing.
    """
    if install:
        msg = f"resq {command} needs a package that is not installed; write: {install}"
        raise MissingExtraError(msg)


def add_command(
    commands: Commands, name: str, *, help: str, description: str, needs: Mapping[str, str] | None = None
) -> Parser:
    """Add a command and return its parser.

    Args:
        commands: what ``add`` was given.
        name: of the command.
        help: one line for ``resq --help``.
        description: a few sentences for ``resq NAME --help``.
        needs: package to the extra that brings it; where one is missing the help says what to install, and so does
            the error of a run.
    """
    install = missing(needs or {})
    parser = commands.add_parser(name, help=f"{help} [needs: {install}]" if install else help, description=description)
    parser.set_defaults(missing=install)
    return parser


def add_commands(commands: Commands) -> None:
    """Add every installed command, by name; one whose module cannot be imported is listed with what it lacks."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            add = entry.load()
        except ImportError as error:
            _add_broken(commands, entry.name, error)
        else:
            add(commands)


def _add_broken(commands: Commands, name: str, error: ImportError) -> None:
    package = (error.name or "its package").partition(".")[0]
    install = f"pip install {package}"
    parser = commands.add_parser(name, help=f"[needs: {install}]", prefix_chars="\0", add_help=False)
    parser.add_argument("rest", nargs="*")

    def run(*_: object) -> NoReturn:
        msg = f"{error}; write: {install}"
        raise MissingExtraError(msg)

    parser.set_defaults(run=run, missing="")
