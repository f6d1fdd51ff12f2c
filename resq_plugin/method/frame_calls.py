"""Which layers a frame called, compared with its keyframe: a call must not take another call's memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from resq_plugin.errors import StreamError

__all__ = ["CallsChangedError", "compare_calls"]


class CallsChangedError(StreamError):
    """A frame called other layers than its keyframe, or with other inputs: as a keyframe it would be right.

    Attributes:
        owner: whose frame it is, because streams may nest.
    """

    owner: object = None


def compare_calls(found: Sequence[str], expected: Sequence[str], elsewhere: Collection[str] = ()) -> tuple[str, str]:
    """Say of which layer the calls of a frame differ from those of its keyframe, and how; empty if none do.

    Where no layer is called twice, the order does not matter: every call finds its memory by its name.

    Args:
        found: names of the layers in the order of their calls.
        expected: those of the keyframe.
        elsewhere: layers that ran in another thread meanwhile.
    """
    counts, before = Counter(found), Counter(expected)
    fewer = [name for name in before if counts[name] < before[name]]
    if fewer:
        name = fewer[0]
        where = ", while it ran in another thread, which does not see the stream" if name in elsewhere else ""
        more = f", as were {len(fewer) - 1} other layers" if len(fewer) > 1 else ""
        found_now = f"was called {before[name]} time(s) at the keyframe and {counts[name]} time(s) now"
        return name, f"layer {name} {found_now}{where}{more}"
    if max(before.values(), default=0) > 1 and list(found) != list(expected):
        index = next(index for index, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        reused = next(name for name, count in before.items() if count > 1)
        return reused, (
            f"call {index} of the frame is of layer {found[index]} and was of {expected[index]} at the keyframe, "
            f"so that nobody can tell which call of layer {reused} is which"
        )
    return "", ""
