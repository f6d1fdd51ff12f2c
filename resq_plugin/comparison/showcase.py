"""What schemes look like on the first frames: the cheapest good setting of each, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resq_plugin.comparison.settings import Setting, checkpoint_path
from resq_plugin.config import ResQConfig
from resq_plugin.conversion import convert, evaluating, load_checkpoint, revert
from resq_plugin.cost import Cost, measure_cost
from resq_plugin.evaluation import LayerError, measure_layers
from resq_plugin.method import Stream, residual_layers, stream
from resq_plugin.report import (
    NAMES,
    Draw,
    Row,
    cheapest,
    draw_bits,
    drawer_of,
    level_of,
    pictures_of,
    relative_error,
    row_label,
)

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
        errors: name of a row to the error of its output on one residual frame, (h, w), see `relative_error`; empty
            where the output is no map.
        errors_at: number of that frame.
    """

    columns: Mapping[str, Sequence[Tensor]]
    interval: int
    over_time: Mapping[str, Sequence[float]]
    layers: Sequence[LayerError]
    cost: Cost | None
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    errors_at: int = 0


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


def rival_of(rows: Sequence[Row], chosen: Sequence[Row]) -> Row | None:
    """The row of frame quantization whose bit operations are nearest to those of the chosen row of ResQ."""
    streams = [row for row in chosen if row["scheme"] in ("resq", "dynamic")]
    frames = [row for row in rows if row["scheme"] == "frame"]
    if not streams or not frames:
        return None
    cost = float(streams[0]["relative_bops"])
    return min(frames, key=lambda row: (abs(float(row["relative_bops"]) - cost), -float(row["accuracy"])))


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
        chosen = chosen_rows(rows)
        # The last frame before any of them has a keyframe again.
        errors_at = min([row["interval"] for row in chosen if row["interval"] > 1] + [len(shown)]) - 1
        found, exact = [], None
        for index, frame in enumerate(shown):
            output = model(frame)
            exact = _map_of(output) if index == errors_at else exact
            found.append(predict(output).cpu())
        paint = draw or drawer_of(found[0])
        if paint is None:
            return None
        columns: dict[str, Sequence[Tensor]] = {"Video": pictures}
        columns["Float"] = [paint(image, labels) for image, labels in zip(pictures, found, strict=True)]
        longest, layers, cost = 1, [], None
        over_time: dict[str, list[float]] = {}
        errors: dict[str, Tensor] = {}
        rival = rival_of(rows, chosen)
        for row in [rival, *chosen] if rival is not None and rival not in chosen else chosen:
            config = configs[row["setting"]]
            if config is None:
                continue
            longest = max(longest, Setting(config).interval)
            convert(model, config, example=shown[0])
            try:
                load_checkpoint(model, checkpoint_path(folder, Setting(config)))
                drawn, predictions, output = _columns(model, shown, pictures, row, predict, paint, errors_at)
                if exact is not None and output is not None and (row["scheme"] != "frame" or row is rival):
                    errors[_short(row)] = relative_error(output, exact).cpu()
                if row not in chosen:
                    continue
                columns |= drawn
                if not found[0].is_floating_point():
                    pairs = zip(predictions, found, strict=True)
                    over_time[row_label(row)] = [100 * float((a == b).double().mean()) for a, b in pairs]
                if row["scheme"] == "resq":
                    layers = measure_layers(model, shown[: 2 * row["interval"]], row["interval"])
                    cost = measure_cost(model, shown[0].shape)
            finally:
                revert(model)
    return Showcase(columns, longest, over_time, layers, cost, errors, errors_at)


def _columns(
    model: nn.Module,
    frames: Sequence[Tensor],
    pictures: Sequence[Tensor],
    row: Row,
    predict: Callable[[Any], Tensor],
    paint: Draw,
    kept: int,
) -> tuple[dict[str, list[Tensor]], list[Tensor], Tensor | None]:
    """Pictures by title, predictions, and the output of one frame."""
    drawn, bits, found, output = [], [], [], None
    pool = next(iter(_pools(model)), ())
    with stream(model, record_choices=True, interval=row["interval"]) as video:
        for index, (frame, image) in enumerate(zip(frames, pictures, strict=True)):
            raw = video(frame)
            output = _map_of(raw) if index == kept else output
            found.append(predict(raw).cpu())
            drawn.append(paint(image, found[-1]))
            bits.append(draw_bits(image, _mean_bits(video, image, pool), pool) if pool else image)
    columns = {row_label(row): drawn}
    if pool:
        columns[f"Bits per pixel, {min(pool)} (dark) to {max(pool)}"] = bits
    return columns, found, output


def _short(row: Row) -> str:
    """Name of a row in two lines, with what it costs."""
    name = NAMES[row["scheme"]]
    share = f"{100 * float(row['relative_bops']):.0f} % of the BOPs"
    return f"{name.removesuffix(' quantization')}, {share}\n{row_label(row).removeprefix(name).strip()}"


def _map_of(output: Any) -> Tensor | None:
    """The first map (N, C, h, w) of a model's output, a private copy, if there is any."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    found = next((leaf for leaf in leaves if leaf.dim() == 4 and leaf.is_floating_point()), None)
    return None if found is None else found.clone()


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
