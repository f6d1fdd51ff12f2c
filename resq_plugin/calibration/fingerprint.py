"""Short digests that tell tensors from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["fingerprint"]


def fingerprint(values: Iterable[tuple[str, object]] = (), **facts: object) -> str:
    """Digest of named tensors, of any shape, and of facts, which `json` can write; other values are left out.

    >>> fingerprint([("w", torch.ones(2))]) == fingerprint([("w", torch.ones(2))])
    True
    >>> fingerprint([("w", torch.ones(2))], bits=4) == fingerprint([("w", torch.ones(2))], bits=8)
    False
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, value in values:
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
