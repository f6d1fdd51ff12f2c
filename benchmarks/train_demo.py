"""Train the net of the embedded demo on new scenes: `uv run --group dev python benchmarks/train_demo.py`.

Scenes of the demo and of the tests come from `HELD_OUT_SEEDS` and are never trained on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from resq_plugin.demo import HELD_OUT_SEEDS, DemoNet, SceneConfig, generate_clip, mean_iou
from resq_plugin.files import written

VALIDATION_SEEDS = HELD_OUT_SEEDS[-24:]


def scenes(batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of frames (N, 3, H, W) and labels (N, H, W), each frame from a scene of its own."""
    numbers = count(HELD_OUT_SEEDS.stop + 1_000_000 * seed)
    while True:
        configs = [SceneConfig(noise=0.01 + 0.005 * (number % 5), seed=number) for number in islice(numbers, batch)]
        frames, labels = zip(*(generate_clip(config, 1) for config in configs), strict=True)
        yield torch.cat(frames), torch.cat(labels)


@torch.no_grad()
def validate(net: nn.Module) -> float:
    """Mean IoU over held-out scenes at the demo's resolution."""
    net.eval()
    clips = [generate_clip(SceneConfig(seed=seed), 1) for seed in VALIDATION_SEEDS]
    predictions = torch.cat([net(frames).argmax(1) for frames, _ in clips])
    net.train()
    return mean_iou(predictions, torch.cat([labels for _, labels in clips]))


def train(steps: int, batch: int, learning_rate: float, seed: int) -> DemoNet:
    torch.manual_seed(seed)
    net = DemoNet().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    start = time.perf_counter()
    for step, (frames, labels) in zip(range(1, steps + 1), scenes(batch, seed), strict=False):
        loss = nnf.cross_entropy(net(frames), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 350 == 0 or step == steps:
            elapsed = time.perf_counter() - start
            print(f"step {step:5d}  loss {loss.item():.4f}  val mIoU {100 * validate(net):.2f} %  {elapsed:.0f} s")
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("resq_plugin/demo/demonet.pth"))
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = train(args.steps, args.batch, args.learning_rate, args.seed)
    with written(args.out) as part, part.open("wb") as file:
        torch.save({name: value.contiguous() for name, value in net.state_dict().items()}, file)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, {sum(p.numel() for p in net.parameters())} parameters")


if __name__ == "__main__":
    main()
