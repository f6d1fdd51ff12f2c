"""What layers make of their weights, kept for as long as nobody writes them.

Weights are written in many ways that leave no trace (``tensor.data``, NumPy views, averaging libraries), so they are
compared with a copy, bit for bit, once before every frame of a stream. Only then, and only while that frame runs, is a
quantized weight taken from a former frame. Everywhere else it is made anew: outside streams, in training, under
`torch.compile`, tracers and exporters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["KeptNumbers", "compare_numbers", "numbers_are_settled", "settled_numbers"]

_count = itertools.count(1)
_settled: ContextVar[tuple[list[bool], ...]] = ContextVar("resq_settled_numbers", default=())
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KeptNumbers:
    """Copies of the numbers of a layer, and what was made of them. Copies and pickles of a layer start without any.

    Attributes:
        tensors: the copies.
        made: weight and bias of a path, by its name.
        version: another one for every set of copies; 0 before the first.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), version: int = 0) -> None:
        self.tensors = list(tensors)
        self.made: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.version = version

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptNumbers:
        return KeptNumbers()

    def __reduce__(self) -> tuple[type[KeptNumbers], tuple[()]]:
        return KeptNumbers, ()


class HasNumbers(Protocol):
    """A layer that keeps what it makes of its numbers."""

    kept: KeptNumbers

    def numbers(self) -> list[Tensor]:
        """All tensors that weights and ranges are made of."""
        ...


def compare_numbers(layers: Iterable[Any]) -> None:
    """Let every layer whose numbers are others than those it has copies of forget what it made of them."""
    layers = [layer for layer in layers if isinstance(getattr(layer, "kept", None), KeptNumbers)]
    found = [[tensor.detach() for tensor in layer.numbers()] for layer in layers]
    remote = [
        index for index, tensors in enumerate(found) if any(t.device.type not in ("cpu", "meta") for t in tensors)
    ]
    if remote and _are_alike_in_one(
        [tensor for index in remote for tensor in found[index]],
        [tensor for index in remote for tensor in layers[index].kept.tensors],
    ):
        same = set(remote)
    else:
        same = set()
    for index, (layer, tensors) in enumerate(zip(layers, found, strict=True)):
        if index in same or _are_alike(tensors, layer.kept.tensors):
            continue
        with torch.inference_mode(False), torch.no_grad():
            layer.kept = KeptNumbers((tensor.clone() for tensor in tensors), next(_count))


@contextmanager
def settled_numbers(layers: Iterable[Any]) -> Iterator[None]:
    """Let layers use what they have kept inside, in this thread of execution, for as long as one frame runs.

    What is written while it runs counts from the next frame on.
    """
    compare_numbers(layers)
    entry = [True]
    _settled.set((*(other for other in _settled.get() if other[0]), entry))
    try:
        yield
    finally:
        entry[0] = False  # generators leave their blocks in any order, and some in another context


def numbers_are_settled() -> bool:
    """Whether layers may use what they have kept: no compiler or tracer may take it for a constant of its graph."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return any(entry[0] for entry in _settled.get())


def _have_one_form(found: list[Tensor], kept: list[Tensor]) -> bool:
    if len(found) != len(kept):
        return False
    pairs = zip(found, kept, strict=True)
    return all(
        a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.stride() == b.stride()
        for a, b in pairs
    )


def _are_alike(found: list[Tensor], kept: list[Tensor]) -> bool:
    """Whether two lists hold the same bits; NaN is like NaN. A meta tensor has none."""
    pairs = zip(found, kept, strict=False)
    return _have_one_form(found, kept) and all(a.is_meta or torch.equal(_words(a), _words(b)) for a, b in pairs)


def _words(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else tensor.view(_WORDS[tensor.element_size()])


def _are_alike_in_one(found: list[Tensor], kept: list[Tensor]) -> bool:
    """The same for an accelerator, which is waited for once instead of once for each tensor."""
    if not _have_one_form(found, kept) or len({tensor.device for tensor in found}) > 1:
        return False
    both = [torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in side]) for side in (found, kept)]
    return torch.equal(*both)
