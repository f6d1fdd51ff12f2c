"""Pseudo-labels (§5.2): label maps that any MMSeg model predicts for the frames that nobody labelled.

Training on clips needs a label for every frame. The paper takes an off-the-shelf network for it::

    python -m resq_mmseg.pseudo_labels LABELLER_CONFIG CHECKPOINT --data RECIPE --out data/cityscapes/pseudo/train

The training dataset of RECIPE then reads them with ``pseudo_label_dir='pseudo/train'``.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from resq_mmengine.loading import load_weights
from resq_mmengine.zoo import build_model, load_config
from torch import nn
from tqdm import tqdm

from resq_mmseg.video import SegmentationVideo
from resq_plugin.errors import ConfigError, ResQError
from resq_plugin.files import check_folder, written

__all__ = ["main", "make_pseudo_labels", "unlabelled_frames"]

logger = logging.getLogger(__name__)


def unlabelled_frames(data: Config, labeller: Config, dataloader: str = "train_dataloader") -> SegmentationVideo:
    """Build the video dataset of one configuration with the test pipeline of another.

    Args:
        data: has the video dataset.
        labeller: has the test pipeline of the network that labels.
        dataloader: which of the dataloaders of ``data``.

    Raises:
        ConfigError: the dataset is not one of resq_mmseg.
    """
    description = copy.deepcopy(data[dataloader]["dataset"])
    while description["type"] == "RepeatDataset":
        description = description["dataset"]
    # The labels are about to be made.
    description.pop("pseudo_label_dir", None)
    description.update(pipeline=labeller["test_dataloader"]["dataset"]["pipeline"], test_mode=True)
    init_default_scope("mmseg")
    dataset = DATASETS.build(description)
    if not isinstance(dataset, SegmentationVideo):
        msg = (
            f"{dataloader} has a {type(dataset).__name__}, which knows no clips and no frames without labels; write "
            "dataset=dict(type='resq_mmseg.CityscapesSnippets', ...) or 'resq_mmseg.FrameFolder'."
        )
        raise ConfigError(msg)
    return dataset


@torch.no_grad()
def make_pseudo_labels(model: nn.Module, dataset: SegmentationVideo, folder: Path, *, progress: bool = False) -> int:
    """Write ``{folder}/{frame name}.png`` for every frame without a label; files that exist stay.

    Args:
        model: an MMSeg segmentor in evaluation mode.
        dataset: with the model's test pipeline.
        folder: the ``pseudo_label_dir`` to be.
        progress: show a progress bar.

    Returns:
        How many were written.

    Raises:
        ConfigError: the model has another number of classes.
        ResQError: a label cannot be written; those before it are complete.
    """
    classes, found = len(dataset.metainfo["classes"]), model.decode_head.num_classes
    if found != classes:
        msg = f"the network labels {found} classes but {type(dataset).__name__} has {classes}; take one of its own."
        raise ConfigError(msg)
    infos = ((index, dataset.get_data_info(index)) for index in range(len(dataset)))
    wanted = [(index, folder / f"{info['frame_name']}.png") for index, info in infos if not info["labelled"]]
    wanted = [(index, path) for index, path in wanted if not path.exists()]
    for index, path in tqdm(wanted, "labelling frames", disable=not progress):
        (sample,) = model.test_step(pseudo_collate([dataset[index]]))
        label = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint8)
        with written(path) as part:
            Image.fromarray(label).save(part, format="PNG")
    return len(wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m resq_mmseg.pseudo_labels", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of the network that labels: a file or mmseg::name")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("--data", help="config with the video dataset (default: the first one)")
    parser.add_argument("--dataloader", default="train_dataloader", help="which of its dataloaders")
    parser.add_argument("--out", type=Path, required=True, help="folder for the labels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, help="override keys of both configs"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        check_folder(args.out, option="--out")
        labeller, data = load_config(args.config), load_config(args.data or args.config)
        for config in (labeller, data):
            config.merge_from_dict(args.cfg_options)
        dataset = unlabelled_frames(data, labeller, args.dataloader)
        model = build_model(labeller).to(args.device)
        load_weights(model, args.checkpoint)
        count = make_pseudo_labels(model, dataset, args.out, progress=True)
    except ResQError as error:
        logger.error("error: %s", error)
        return 1
    logger.info("%d labels written to %s", count, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
