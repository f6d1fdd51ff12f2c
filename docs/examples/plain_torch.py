"""A plain torch model on video: compare settings, take one, stream, train on, save and load.

    uv run --group dev python docs/examples/plain_torch.py

Everything is embedded: a small segmentation net and procedural scenes. With a model and a video of your own, write
``frames = resq_plugin.video.read("my.mp4", size=(H, W), mean=..., std=...)``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from resq_plugin import (
    ResQConfig,
    calibrate,
    compare,
    convert,
    load_checkpoint,
    measure_cost,
    save_checkpoint,
    stream,
    summarize,
)
from resq_plugin.demo import SceneConfig, generate_clip, load_demo_net


def main() -> None:
    """Run every step."""
    frames = list(generate_clip(SceneConfig(height=96, width=128, camera="pan", seed=7), 28)[0].unsqueeze(1))

    # 1. Which setting? The first quarter of the frames calibrates, the rest is measured against the float model.
    with tempfile.TemporaryDirectory() as folder:
        found = compare(load_demo_net(), frames, ["W8A8", "W8A8->W4A4", "W8A8->W4A{0,4,8}"], progress=False)
        print(found)
        print(found.python(found.best(max_drop=5.0)))

        # 2. Convert in place, calibrate on clips, stream: one stream is one video.
        config = ResQConfig.parse("W8A8->W4A{0,4,8}", interval=3)
        model = convert(load_demo_net(), config, example=frames[0])
        calibrate(model, [frames[start : start + 3] for start in range(0, 6, 3)])
        with torch.inference_mode(), stream(model) as video:
            labels = [video(frame).argmax(1) for frame in frames[6:]]
        print(
            f"{len(labels)} frames, position {video.position} when it ended, {len(summarize(model).converted)} layers"
        )

        # 3. What it costs, with the share of pixels per bit width that this video took.
        cost = measure_cost(model, tuple(frames[0].shape), shares=video.bit_shares())
        print(f"{cost.bops_per_frame / 1e9:.2f} GBOPs per frame, {cost.state_bytes / 1e6:.1f} MB of state")

        # 4. Weights and ranges in one file; float checkpoints load strictly both ways.
        path = Path(folder) / "resq.pth"
        save_checkpoint(model, path)
        again = convert(load_demo_net(), config)
        load_checkpoint(again, path)
        with torch.inference_mode(), stream(again) as video:
            same = all(
                torch.equal(video(frame).argmax(1), label) for frame, label in zip(frames[6:], labels, strict=True)
            )
        print("the loaded model predicts the same:", same)


if __name__ == "__main__":
    main()
