"""Networks by name, for commands: ``vos::stm`` and ``vos::stm-small``."""

from __future__ import annotations

import os
from pathlib import Path

from resq_plugin.errors import ConfigError, nearest
from resq_vos.stm import PUBLISHED, SMALL, STM, load_stm

__all__ = ["MODELS", "PREFIX", "build_stm", "named_stm"]

PREFIX = "vos::"
MODELS = {"small": SMALL, "published": PUBLISHED}
NAMES = {f"{PREFIX}stm": PUBLISHED, f"{PREFIX}stm-small": SMALL}


def named_stm(name: str) -> STM:
    """Build an STM without weights.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in NAMES:
        msg = f"there is no network {name!r}.{nearest(name, NAMES)} Write one of {', '.join(NAMES)}."
        raise ConfigError(msg)
    return STM(NAMES[name]).eval()


def build_stm(model: str, checkpoint: str | os.PathLike[str] | None) -> STM:
    """Build an STM with weights.

    Raises:
        ConfigError: no file was given, or it is not there.
        CheckpointError: it is of another network.
    """
    if checkpoint is None:
        msg = (
            "no weights come with resq-plugin; pass --checkpoint CK. Weights of the small STM are made by "
            "`uv run --group dev python benchmarks/train_stm.py --out stm_small.pth`."
        )
        raise ConfigError(msg)
    if not Path(checkpoint).is_file():
        msg = f"--checkpoint {checkpoint}: there is no such file."
        raise ConfigError(msg)
    return load_stm(checkpoint, MODELS[model])
