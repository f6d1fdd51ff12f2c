"""``--cfg-options KEY=VALUE ...`` as MMEngine reads them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmengine.config import DictAction

from resq_plugin.errors import ConfigError

__all__ = ["read_options"]


def read_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return dotted keys and their values.

    >>> read_options(["resq.interval=5", "model.backbone.depth=18"])
    {'resq.interval': 5, 'model.backbone.depth': 18}

    Raises:
        ConfigError: a pair is not of that form.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=DictAction, default={})
    try:
        return dict(parser.parse_args(["--options", *pairs] if pairs else []).options)
    except ValueError as error:
        msg = f"--cfg-options {' '.join(pairs)}: {error}; write KEY=VALUE, e.g. resq.interval=5."
        raise ConfigError(msg) from error
