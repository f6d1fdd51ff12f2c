"""The program ``resq``: arguments, errors of the user in one line, exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resq_plugin import __version__
from resq_plugin.cli.commands import INTERRUPTED, USER_ERROR, Parser, add_commands, require
from resq_plugin.errors import ResQError
from resq_plugin.files import check_file

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0; 2 when the user can put it right, with one line on stderr that tells how; 130 after Ctrl-C.
    """
    try:
        return _main(argv)
    except KeyboardInterrupt:
        sys.stderr.write("\nresq: interrupted\n" if sys.stderr.isatty() else "resq: interrupted\n")
        return INTERRUPTED


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="resq", description="ResQ: residual quantization for video perception.")
    parser.add_argument("--version", action="version", version=f"resq-plugin {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what is done; with errors also where")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    add_commands(commands)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        require(args.command, args.missing)
        if getattr(args, "json", None):
            check_file(args.json)  # now, rather than after minutes of work
        code: int = args.run(args, _console())
    except ResQError as error:
        if args.verbose:
            logging.getLogger(__name__).exception("the command failed")
        sys.stderr.write(f"resq {args.command}: error: {' '.join(str(error).split())}\n")
        return USER_ERROR
    return code


def _console() -> Console:
    """The one console of the program: names of files, layers and classes are printed as they are."""
    from rich.console import Console  # noqa: PLC0415

    # The stream of now: commands keep back what toolkits print to `sys.stdout`.
    return Console(file=sys.stdout, markup=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
