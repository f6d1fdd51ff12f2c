"""What fails in the data that a config describes, as one line: the step, the data set, the file and the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.registry import DATASETS, TRANSFORMS

from resq_plugin.errors import ConfigError, ResQError

__all__ = ["build_dataset", "build_transforms", "check_packed", "described", "step_errors", "telling"]

PACKERS = "dict(type='PackSegInputs') or, of MMPose, 'PackPoseInputs'"


@contextmanager
def telling(what: str, advice: str = "") -> Iterator[None]:
    """Let whatever fails inside be a line that begins with ``what`` and ends with ``advice``.

    Raises:
        ConfigError: something failed; errors that teach already stay as they are.
    """
    try:
        yield
    except ResQError:
        raise
    except Exception as error:
        msg = f"{what}: {described(error)}{'.' if not advice else f'; {advice}.'}"
        raise ConfigError(msg) from error


def described(error: Exception) -> str:
    """Class and text of an error in one line.

    >>> described(KeyError("img"))
    "KeyError: 'img'"
    """
    kind = type(error)
    name = f"{kind.__module__}.{kind.__name__}" if kind.__name__.islower() else kind.__name__  # cv2.error
    return f"{name}: {' '.join(str(error).split())[:400]}".rstrip(" .:")


def step_errors(step: object, owner: str, frame: str) -> Any:
    """Tell which step of whose pipeline fails on which frame, see `telling`."""
    return telling(
        f"{type(step).__name__} in the pipeline of {owner} fails on {frame}",
        "change the step in that pipeline of the config, or the frame",
    )


def build_transforms(steps: Sequence[Mapping[str, Any]], owner: str) -> list[Any]:
    """Build the steps of a pipeline.

    Raises:
        ConfigError: one cannot be built.
    """
    found = []
    for step in steps:
        with telling(f"the step {step.get('type')} in the pipeline of {owner} cannot be built"):
            found.append(TRANSFORMS.build(dict(step)))
    return found


def build_dataset(settings: Mapping[str, Any], key: str) -> Any:
    """Build the data set that stands under that key of the config.

    Raises:
        ConfigError: it cannot be built.
    """
    with telling(f"{key} (type={settings.get('type')!r}) cannot be built"):
        return DATASETS.build(dict(settings))


def check_packed(batch: object, owner: str) -> None:
    """Refuse what a pipeline without its last step makes.

    Raises:
        ConfigError: there are no ``inputs``.
    """
    if not isinstance(batch, Mapping) or "inputs" not in batch:
        msg = f"the pipeline of {owner} makes no 'inputs' for the model; load images first, and end it with {PACKERS}."
        raise ConfigError(msg)
