"""``resq configs``: the configs that ship with this package, and a copy of them to work on."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from resq_plugin.cli import Commands, add_command
from resq_plugin.errors import ResQError
from resq_plugin.files import check_folder, written_into

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add", "shipped_configs"]

PACKAGES = ("resq_mmengine", "resq_mmseg", "resq_mmpose")


def add(commands: Commands) -> None:
    """``resq configs [--copy DIR]``."""
    parser = add_command(
        commands,
        "configs",
        help="list the shipped mm configs and fragments, or copy them",
        description="List the shipped configs of MMSeg and MMPose and the fragments they are made of. A config names "
        "its fragment by a relative path, so copy all of them to change one.",
    )
    parser.add_argument("--copy", type=Path, metavar="DIR", help="copy them there, in folders of the same names")
    parser.set_defaults(run=_run)


def shipped_configs() -> dict[str, Path]:
    """Return the path of every shipped config by its name, such as ``resq_mmseg/configs/camvid/....py``."""
    found = {}
    for package in PACKAGES:
        spec = find_spec(package)
        for root in spec.submodule_search_locations or [] if spec else []:
            parent = Path(root).parent
            found.update({str(path.relative_to(parent)): path for path in sorted(Path(root).glob("configs/**/*.py"))})
    return found


def _run(args: argparse.Namespace, console: Console) -> int:
    configs = shipped_configs()
    if args.copy is None:
        _list(configs.values(), console)
        return 0
    check_folder(args.copy, option="--copy")
    copies = {args.copy / name: path for name, path in configs.items()}
    for target in copies:
        if os.path.lexists(target):
            msg = f"{target} exists already; give --copy another folder."
            raise ResQError(msg)
    with written_into(args.copy) as part:
        for name, path in configs.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, part / name)
    _list(copies, console)
    return 0


def _list(paths: Iterable[Path], console: Console) -> None:
    for path in paths:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
