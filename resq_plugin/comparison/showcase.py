"""What schemes look like on the first frames: the cheapest good setting of each, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resq_plugin.comparison.settings import Setting, checkpoint_path
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import convert, evaluating, load_checkpoint, revert
from resq_plugin.cost import Cost, measure_cost
from resq_plugin.evaluation import LayerError, measure_layers
from resq_plugin.method import Stream, residual_layers, stream
from resq_plugin.report import Draw, Row, cheapest, draw_bits, drawer_of, level_of, pictures_of, row_label

__all__ = ["Showcase", "chosen_rows", "make_showcase"]

FRAMES = 24


@dataclass(frozen=True)
class Showcase:
    """Pictures (3, H, W), uint8, of consecutive frames.

    Attributes:
        columns: title to one picture per frame, the video first.
        interval: T of the streams that are shown.
        over_time: name of a row to the share of equal values of each frame, in percent; of integer predictions.
        layers: errors of every layer of the row of ResQ.
        cost: of that row.
    """

    columns: Mapping[str, Sequence[Tensor]]
    interval: int
    over_time: Mapping[str, Sequence[float]]
    layers: Sequence[LayerError]
    cost: Cost | None


def chosen_rows(rows: Sequence[Row]) -> list[Row]:
    """The cheapest good row of each quantized scheme; of one without a good row, the most accurate."""
    level = level_of(rows)
    chosen = []
    for scheme in ("frame", "resq", "dynamic"):
        of_scheme = [row for row in rows if row["scheme"] == scheme]
        if of_scheme:
            good = cheapest(rows, scheme, level) if level is not None else None
            chosen.append(good or max(of_scheme, key=lambda row: float(row["accuracy"])))
    return chosen


@torch.no_grad()
def make_showcase(
    model: nn.Module,
    frames: Sequence[Tensor],
    rows: Sequence[Row],
    configs: Mapping[str, ResQConfig | None],
    folder: Path,
    predict: Callable[[Any], Tensor],
    *,
    draw: Draw | None = None,
    picture: Callable[[int], Tensor] | None = None,
) -> Showcase | None:
    """Run the chosen rows on the first frames, from the checkpoints of the comparison.

    Args:
        model: the float model; it is given back as it was.
        frames: of one video, (1, C, H, W).
        rows: of the comparison.
        configs: by name of a row.
        folder: where the checkpoints are.
        predict: model output to prediction.
        draw: how a prediction is drawn; by its looks unless given.
        picture: number of a frame to its picture (3, H, W), uint8; made of the normalised frames unless given.

    Returns:
        Pictures, or None where nobody knows how to draw the predictions.
    """
    shown = [frames[index] for index in range(min(FRAMES, len(frames)))]
    pictures = [picture(index) for index in range(len(shown))] if picture else pictures_of(shown)
    with evaluating(model):
        found = [predict(model(frame)).cpu() for frame in shown]
        paint = draw or drawer_of(found[0])
        if paint is None:
            return None
        columns: dict[str, Sequence[Tensor]] = {"Video": pictures}
        columns["Float"] = [paint(image, labels) for image, labels in zip(pictures, found, strict=True)]
        longest, layers, cost = 1, [], None
        over_time: dict[str, list[float]] = {}
        for row in chosen_rows(rows):
            config = configs[row["setting"]]
            if config is None:
                continue
            longest = max(longest, Setting(config).interval)
            convert(model, config, example=shown[0])
            try:
                load_checkpoint(model, checkpoint_path(folder, Setting(config)))
                drawn, predictions = _columns(model, shown, pictures, row, predict, paint)
                columns |= drawn
                if not found[0].is_floating_point():
                    pairs = zip(predictions, found, strict=True)
                    over_time[row_label(row)] = [100 * float((a == b).double().mean()) for a, b in pairs]
                if row["scheme"] == "resq":
                    layers = measure_layers(model, shown[: 2 * row["interval"]], row["interval"])
                    cost = measure_cost(model, shown[0].shape)
            finally:
                revert(model)
    return Showcase(columns, longest, over_time, layers, cost)


def _columns(
    model: nn.Module,
    frames: Sequence[Tensor],
    pictures: Sequence[Tensor],
    row: Row,
    predict: Callable[[Any], Tensor],
    paint: Draw,
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    drawn, bits, found = [], [], []
    pool = next(iter(_pools(model)), ())
    with stream(model, record_choices=True, interval=row["interval"]) as video:
        for frame, image in zip(frames, pictures, strict=True):
            found.append(predict(video(frame)).cpu())
            drawn.append(paint(image, found[-1]))
            bits.append(draw_bits(image, _mean_bits(video, image, pool), pool) if pool else image)
    columns = {row_label(row): drawn}
    if pool:
        columns[f"Bits per pixel, {min(pool)} (dark) to {max(pool)}"] = bits
    return columns, found


def _pools(model: nn.Module) -> list[tuple[int, ...]]:
    residuals = [layer.settings.residual for layer in residual_layers(model).values()]
    return [residual.pool for residual in residuals if residual is not None and residual.is_dynamic]


def _mean_bits(video: Stream, picture: Tensor, pool: Sequence[int]) -> Tensor:
    """Bits of every pixel, averaged over the layers that chose; a keyframe has the most everywhere."""
    size = picture.shape[-2:]
    if video.is_keyframe or not video.choices:
        return torch.full(size, float(max(pool)))
    maps = [choice[:1].float() for choice in video.choices.values() if choice.dim() == 3]
    return torch.stack([F.interpolate(bits[None], size=size, mode="nearest")[0, 0] for bits in maps]).mean(0)
