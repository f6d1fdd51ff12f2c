"""Figures and Markdown tables of what benchmarks/camvid.py measured.

    uv run --group dev python benchmarks/camvid_figures.py  # docs/figures/camvid_*.png, tables
    uv run --group dev python benchmarks/camvid_figures.py --policy-map DIR  # and one like Fig. 6 (needs the data)

The policy map shows frames of CamVid, whose licence is not ours to pass on: write it outside the repository.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from common import MEAN, ROOT, STD, calibration_clips, camvid, ddrnet, parser

from resq_plugin import ResQConfig, calibrate, convert, stream
from resq_plugin.report import Series, accuracy_by_distance, accuracy_over_bops, policy_maps

LAYER = "backbone.stem.1.conv"
Row = dict[str, Any]


def select(rows: list[Row], **wanted: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def over_bops(rows: list[Row], folder: Path) -> None:
    """Fig. 7: tensor weights, the paper's float reference, all T."""
    chosen = select(rows, scheme="float") + select(rows, weights="tensor", reference="float")
    accuracy_over_bops(
        [row for row in chosen if row["threshold"] in (None, 0.1)],
        folder / "camvid_accuracy_over_bops.png",
        title="DDRNet-23-slim on CamVid, PTQ",
    )


def by_distance(rows: list[Row], folder: Path) -> None:
    """Fig. 9: W8A8->W4A4 at T = 8, every reference, beside frame quantization of the same BOPs."""
    series = []
    for reference in ("float", "quantized", "running"):
        for row in select(rows, precision="W8A8->W4A4", weights="tensor", reference=reference, interval=8):
            series.append(Series(f"ResQ W8A8->W4A4, {reference} reference", "resq", row["accuracy_by_distance"]))
    key = {"precision": "W8A8->W4A{0,4,8}", "weights": "tensor", "reference": "float"}
    for row in select(rows, **key, interval=8, threshold=0.1):
        series.append(Series("Dynamic-ResQ W8A8->W4A{0,4,8}, τ=0.1", "dynamic", row["accuracy_by_distance"]))
    for row in select(rows, precision="W4A8", weights="tensor"):
        series.append(Series("Frame W4A8", "frame", [row["accuracy"]] * 8))
    accuracy_by_distance(series, folder / "camvid_accuracy_by_distance.png", title="CamVid, tensor weights")


def markdown(rows: list[Row]) -> str:
    """The main table at T = 3: tensor and channel weights side by side, float reference."""
    lines = [
        "| scheme | precision | τ | GBOPs per frame | mIoU (tensor) | agreement | mIoU (channel) | agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["scheme"] == "float":
            lines.append(f"| float | | | – | {row['accuracy']:.1f} | 100 | {row['accuracy']:.1f} | 100 |")
        if row["weights"] != "tensor" or row["reference"] != "float" or row["interval"] not in (1, 3):
            continue
        key = {name: row[name] for name in ("scheme", "precision", "reference", "interval", "threshold")}
        other = select(rows, weights="channel", **key)
        channel = f"{other[0]['accuracy']:.1f} | {other[0]['agreement']:.1f}" if other else "– | –"
        cells = row["scheme"], row["precision"], row["threshold"] or "", f"{row['gbops_per_frame']:.1f}"
        lines.append(f"| {' | '.join(map(str, cells))} | {row['accuracy']:.1f} | {row['agreement']:.1f} | {channel} |")
    return "\n".join(lines)


def references(rows: list[Row]) -> str:
    """The three references side by side at T = 3."""
    lines = ["| precision | weights | τ | float | quantized | running |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["scheme"] in ("resq", "dynamic") and row["reference"] == "float" and row["interval"] == 3:
            key = {name: row[name] for name in ("precision", "weights", "threshold", "interval")}
            numbers = ("accuracy", "agreement", "gbops_per_frame")
            cells = []
            for reference in ("float", "quantized", "running"):
                found = select(rows, reference=reference, **key)
                cells.append(" / ".join(f"{found[0][number]:.1f}" for number in numbers) if found else "–")
            lines.append(f"| {row['precision']} | {row['weights']} | {row['threshold'] or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_policy(data: Path, weights: Path, folder: Path) -> None:
    """Fig. 6: what an early layer chooses at growing distance from the keyframe."""
    frames, _ = camvid(data, "val")
    config = ResQConfig.parse("W8A8->W8A{0,4,8}", interval=8)
    model = convert(ddrnet(weights), config)
    calibrate(model, calibration_clips(camvid(data, "calib")[0]))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    shown, choices = [], []
    with torch.inference_mode(), stream(model, record_choices=True) as video:
        for frame in frames[:6]:
            video(frame)
            shown.append((frame[0] * std + mean).clamp(0, 255).to(torch.uint8))
            if not video.is_keyframe:
                choices.append(video.choices[LAYER][0])
    policy_maps(torch.stack(shown), torch.stack(choices), (0, 4, 8), folder / "camvid_policy.png")


def main() -> None:
    """Draw and print."""
    options = parser(__doc__, "camvid.json")
    options.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    options.add_argument("--policy-map", type=Path, metavar="DIR")
    args = options.parse_args()
    rows = json.loads(args.out.read_text())["rows"]
    args.figures.mkdir(parents=True, exist_ok=True)
    over_bops(rows, args.figures)
    by_distance(rows, args.figures)
    print(markdown(rows), references(rows), sep="\n\n")
    if args.policy_map:
        draw_policy(args.data, args.data / "weights" / "ddrnet23slim_camvid.pth", args.policy_map)


if __name__ == "__main__":
    main()
