"""The threshold of scene changes, from how much frames of a calibration clip differ from its first."""

from __future__ import annotations

from torch import Tensor

from resq_plugin.method import relative_change

__all__ = ["FALLBACK", "UNRELATED", "SceneChanges"]

UNRELATED = 1.0
"""A change as large as between unrelated frames (about 1.4 for noise): a cut or a fade, and no motion."""

FALLBACK = 0.5
"""The threshold where clips show no motion to take it from."""


class SceneChanges:
    """Collects the changes `resq_plugin.method.relative_change` of frames to the first of their clip.

    That is further apart than in an interval, because a stream may be given a longer one.
    """

    def __init__(self) -> None:
        self.changes: list[tuple[int, float]] = []
        """Number of the clip, and change of one pair of frames."""
        self._first: dict[int, Tensor] = {}

    def add(self, clip: int, frames: list[Tensor]) -> None:
        """Note the frames of an interval."""
        later = frames if clip in self._first else frames[1:]
        first = self._first.setdefault(clip, frames[0])
        self.changes += [(clip, float(relative_change(frame, first).max())) for frame in later]

    @property
    def _motion(self) -> list[float]:
        return [change for _, change in self.changes if 0 < change < UNRELATED]

    @property
    def threshold(self) -> float:
        """The largest change that is no cut; between 0 and `UNRELATED`: a cut exceeds it, a still scene does not."""
        return max(self._motion, default=FALLBACK)

    @property
    def findings(self) -> list[str]:
        """What is to be said of the threshold."""
        found = []
        cuts = [clip for clip, change in self.changes if change >= UNRELATED]
        if cuts:
            clips = ", ".join(map(str, sorted(set(cuts))[:8]))
            found.append(
                f"{len(cuts)} of {len(self.changes)} pairs of frames, in clips {clips}, differ as much as unrelated "
                f"frames (relative change at least {UNRELATED:g}): a cut or a fade. They do not count for the "
                f"threshold of scene changes, which is {self.threshold:.3g}"
            )
        if not self._motion:
            found.append(
                f"no pair of frames shows motion to take the threshold of scene changes from, so it is {FALLBACK:g}; "
                f"pass clips of moving scenes, or write schedule=dict(kind='scene_change', threshold={FALLBACK:g})"
            )
        return found
