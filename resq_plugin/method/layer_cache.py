"""What one call of one layer keeps of the past."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from resq_plugin.method.held import Held

__all__ = ["LayerCache", "held_bytes"]


class LayerCache:
    """x_k and z_k of one call of one layer.

    Attributes:
        held_x: reference of the residual as it is kept; layers that read the same tensor may have the same one.
        held_z: the output it stands for.
    """

    def __init__(self, x: Tensor | Held, z: Tensor | Held) -> None:
        self.held_x = x if isinstance(x, Held) else Held.of(x)
        self.held_z = z if isinstance(z, Held) else Held.of(z)

    @property
    def x(self) -> Tensor:
        """Values of the reference, the shape of the layer's input; new ones where integers are kept."""
        return self.held_x.values()

    @property
    def z(self) -> Tensor:
        """Values of the output, the shape of the layer's output; new ones where integers are kept."""
        return self.held_z.values()


def held_bytes(caches: Iterable[LayerCache]) -> int:
    """Bytes of all that is kept, what layers share once."""
    held = {id(item): item for cache in caches for item in (cache.held_x, cache.held_z)}
    return sum(item.bytes for item in held.values())
