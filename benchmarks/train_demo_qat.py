"""Train the demo's net through time at W4A4->W3A3: `uv run --group dev python benchmarks/train_demo_qat.py`.

Intervals come from freshly generated scenes with a still or a panning camera; scenes of the demo and of the tests come
from `HELD_OUT_SEEDS` and are never trained on. The weights are written in 16 bits, to keep the package small.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from resq_plugin import ResQConfig, calibrate, convert, load, save_checkpoint, stream
from resq_plugin.demo import HELD_OUT_SEEDS, DemoNet, SceneConfig, generate_clip, load_demo_net, mean_iou
from resq_plugin.method import ResidualLayer
from resq_plugin.training import TrainConfig, train

PRECISION, INTERVAL = "W4A4->W3A3", 3
VALIDATION_SEEDS = HELD_OUT_SEEDS[-24:]


def scene(seed: int, frames: int = INTERVAL) -> tuple[Tensor, Tensor]:
    """Frames (T, 3, H, W) and labels (T, H, W), noisy to a degree that depends on the seed."""
    config = SceneConfig(noise=0.01 + 0.005 * (seed % 5), camera="pan" if seed % 2 else "still", seed=seed)
    return generate_clip(config, frames)


class Scenes:
    """New scenes in every pass, as many as there are steps."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin another pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return scene(HELD_OUT_SEEDS.stop + 10_000_000 + self.epoch * self.count + index)


@torch.no_grad()
def validate(net: nn.Module) -> float:
    """Mean IoU in percent over held-out scenes, all three positions of an interval; of a float net frame by frame."""
    predictions, targets = [], []
    converted = any(isinstance(module, ResidualLayer) for module in net.modules())
    for seed in VALIDATION_SEEDS:
        frames, labels = scene(seed)
        with stream(net) if converted else nullcontext(net) as run:
            predictions += [run(frame[None]).argmax(1) for frame in frames]
        targets.append(labels)
    return 100 * mean_iou(torch.cat(predictions), torch.cat(targets))


def in_16_bits(path: Path) -> None:
    """Store the weights of a checkpoint in half of the space; `load` takes them as they are."""
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["state_dict"]
    large = {name for name, value in state.items() if value.is_floating_point() and value.dim() > 1}
    checkpoint["state_dict"] = {k: v.half().contiguous() if k in large else v for k, v in state.items()}
    torch.save(checkpoint, path)


def main() -> None:
    """Convert, calibrate, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("resq_plugin/demo/demonet_w4a4_w3a3.pth"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--runs", type=Path, help="folder in which an interrupted run goes on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = load_demo_net()
    floats = validate(net)
    convert(net, ResQConfig.parse(PRECISION, interval=INTERVAL))
    calibrate(net, [list(scene(HELD_OUT_SEEDS.stop + index)[0].unsqueeze(1)) for index in range(12)])
    print(f"before: {validate(net):.2f} % mIoU, float {floats:.2f} %", flush=True)
    start = time.perf_counter()
    settings = TrainConfig(steps=args.steps, batch=4, lr=5e-4, scale_lr=3e-3, warmup=20, distill="logits")

    def report(step: int, values: Any) -> None:
        if step % 100 == 0:
            print(f"step {step:5d}  loss {values['loss']:.4f}  {time.perf_counter() - start:.0f} s", flush=True)

    train(net, Scenes(4 * args.steps), nnf.cross_entropy, settings, folder=args.runs, on_step=report)
    net.eval()
    print(f"after: {validate(net):.2f} % mIoU", flush=True)
    save_checkpoint(net, args.out)
    in_16_bits(args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, {validate(load(args.out, DemoNet()).eval()):.2f} %")


if __name__ == "__main__":
    main()
