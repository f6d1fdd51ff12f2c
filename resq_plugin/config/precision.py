"""The paper's precision notation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resq_plugin.errors import ConfigError

__all__ = ["MAX_BITS", "MIN_BITS", "Precision", "parse_precision"]

MIN_BITS, MAX_BITS = 2, 16

_SIDE = re.compile(r"W(\d+)A(?:(\d+)|[{\[]\s*(\d+(?:\s*,\s*\d+)*)\s*[}\]])", re.IGNORECASE)
_ARROW = re.compile(r"\s*(?:->|→)\s*")


def _check_bits(what: str, bits: object, *, zero: bool) -> None:
    allowed = f"{'0 or ' if zero else ''}{MIN_BITS} to {MAX_BITS}"
    ok = isinstance(bits, int) and not isinstance(bits, bool)
    if not ok or not ((zero and bits == 0) or MIN_BITS <= bits <= MAX_BITS):  # type: ignore[operator]
        msg = f"{what} has {bits!r} bits; allowed are {allowed}, e.g. 'W8A8->W4A4' or 'W8A8->W4A{{0,4,8}}'."
        raise ConfigError(msg)


@dataclass(frozen=True)
class Precision:
    """Bit widths of one kind of frame, e.g. ``W4A8`` or the dynamic pool ``W4A{0,4,8}`` (§4.2).

    Attributes:
        weight: bits of the weights, 2 to 16.
        activation: bits of the activations, 0 or 2 to 16; a tuple, low to high, is a pool to choose from per pixel.
    """

    weight: int
    activation: int | tuple[int, ...]

    def __post_init__(self) -> None:
        _check_bits("the weight", self.weight, zero=False)
        activation: object = self.activation
        if isinstance(activation, list):  # from JSON
            object.__setattr__(self, "activation", tuple(activation))
        for bits in self.pool:
            _check_bits("the activation", bits, zero=True)
        if not self.pool or list(self.pool) != sorted(set(self.pool)):
            msg = (
                f"the pool {self.activation} must name different bit widths from low to high (§4.2), "
                f"e.g. 'W{self.weight}A{{0,4,8}}'."
            )
            raise ConfigError(msg)

    @property
    def pool(self) -> tuple[int, ...]:
        """The activation bit widths, low to high; a single one unless dynamic."""
        return self.activation if isinstance(self.activation, tuple) else (self.activation,)

    @property
    def is_dynamic(self) -> bool:
        """Whether the activation bit width is chosen while running."""
        return isinstance(self.activation, tuple)

    def __str__(self) -> str:
        activation = f"{{{','.join(map(str, self.pool))}}}" if self.is_dynamic else str(self.activation)
        return f"W{self.weight}A{activation}"


def parse_precision(text: str) -> tuple[Precision, Precision | None]:
    """Read the paper's notation: keyframe and residual precision.

    A single side, such as ``"W8A8"``, is plain frame quantization and has no residual precision.

    >>> keyframe, residual = parse_precision("W8A8->W4A{0,4,8}")
    >>> str(keyframe), str(residual), residual.pool
    ('W8A8', 'W4A{0,4,8}', (0, 4, 8))

    Raises:
        ConfigError: the text is not of that form, or a bit width is impossible.
    """
    sides = _ARROW.split(text.strip()) if isinstance(text, str) else []
    matches = [_SIDE.fullmatch(side) for side in sides]
    if not 1 <= len(matches) <= 2 or any(match is None for match in matches):
        msg = (
            f"cannot read the precision {text!r}; write keyframe->residual such as "
            "'W8A8->W4A4', with a pool 'W8A8->W4A{0,4,8}', or 'W8A8' for plain frame quantization."
        )
        raise ConfigError(msg)
    parsed = []
    for match in matches:
        weight, single, pool = match.groups()  # type: ignore[union-attr]
        activation = int(single) if single is not None else tuple(int(bits) for bits in pool.split(","))
        parsed.append(Precision(int(weight), activation))
    keyframe, residual = parsed[0], parsed[1] if len(parsed) == 2 else None
    if keyframe.is_dynamic or keyframe.activation == 0:
        msg = (
            f"the keyframe {keyframe} in {text!r} needs one bit width of at least {MIN_BITS}, "
            "e.g. 'W8A8->W4A{0,4,8}'."
        )
        raise ConfigError(msg)
    return keyframe, residual
