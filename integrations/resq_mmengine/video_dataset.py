"""What the video datasets of MMSeg and MMPose share: frames that tell their clip to the sampler and to the hook."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadAnnotations
from mmengine.dataset import Compose
from PIL import Image

from resq_mmengine.pipelines import step_errors
from resq_plugin.errors import ConfigError, ResQError, VideoError
from resq_plugin.video import natural_key

__all__ = [
    "DatasetError",
    "FramePipeline",
    "VideoDataset",
    "check_depth",
    "natural_key",
    "require_files",
    "seeded",
    "video_errors",
]

TAGS = ("clip_id", "frame_index", "labelled")
"""What every data info carries and every data sample gets as metainfo."""


class DatasetError(ResQError, ValueError):
    """Files of a data set are missing or not in the documented layout."""


class VideoDataset:
    """Mixin for an MMEngine dataset whose data infos carry ``clip_id``, ``frame_index`` and ``labelled``.

    Put it before the dataset class of the toolkit. Any model-zoo pipeline works unchanged: the data samples get the
    three values as metainfo, whatever ``meta_keys`` says, and frames without a label skip ``LoadAnnotations``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = FramePipeline(self.pipeline.transforms, type(self).__name__)

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on one frame; random transforms are alike for all frames of an interval.

        Args:
            idx: index of the frame, a `resq_mmengine.clips.FrameIndex` when `ClipSampler` gives it. Then the data
                sample also tells whether it is a ``keyframe``.

        Raises:
            ConfigError: a transform cannot be alike for all frames of an interval, or needs a label that is missing.
        """
        seed, keyframe = getattr(idx, "seed", None), getattr(idx, "keyframe", None)
        if seed is not None:
            self.pipeline.check_alike()
        with seeded(seed):
            sample = super().prepare_data(idx)
        if keyframe is not None and sample is not None and "data_samples" in sample:
            sample["data_samples"].set_metainfo({"keyframe": keyframe == idx})
        return sample


class FramePipeline(Compose):
    """The transforms of a dataset, run on one frame.

    Args:
        transforms: settings of transforms, or built ones.
        owner: what messages call the dataset.

    Raises:
        ConfigError: a transform fails, or needs the label of a frame that has none.
        DatasetError: a frame or label cannot be read, or a label is none of its frame.
    """

    def __init__(self, transforms: Any, owner: str = "the dataset") -> None:
        super().__init__(transforms)
        self.owner = owner

    def check_alike(self) -> None:
        """Refuse a crop that depends on the labels of its frame.

        Raises:
            ConfigError: ``RandomCrop`` tries again where one class covers too much.
        """
        for transform in self.transforms:
            if getattr(transform, "cat_max_ratio", 1.0) < 1:
                msg = (
                    f"{type(transform).__name__}(cat_max_ratio={transform.cat_max_ratio}) crops the frames of an "
                    "interval at different places, because their labels differ; write cat_max_ratio=1.0 in the "
                    "train_pipeline."
                )
                raise ConfigError(msg)

    def __call__(self, data: dict) -> dict | None:
        """Run all transforms."""
        tags = {key: data[key] for key in TAGS}
        place = f"frame {tags['frame_index']} of clip {tags['clip_id']}"
        where = f"{place} ({data['img_path']})" if data.get("img_path") else place
        for transform in self.transforms:
            if not tags["labelled"] and isinstance(transform, LoadAnnotations):
                continue
            with step_errors(transform, self.owner, where):
                try:
                    data = load(transform, data) if type(transform).__name__.startswith("Load") else transform(data)
                except KeyError as error:
                    if tags["labelled"]:
                        raise
                    msg = (
                        f"{type(transform).__name__} needs {error} but {place} has no label. Train on labelled frames "
                        "only (frames=(0, 0)) or on pseudo-labels (pseudo_label_dir=..., made by "
                        "`python -m resq_mmseg.pseudo_labels`)."
                    )
                    raise ConfigError(msg) from error
            if data is None:
                return None
        if "data_samples" in data:
            data["data_samples"].set_metainfo(tags)
        return data


def load(transform: Any, data: dict) -> dict | None:
    """Run a transform that reads files, and check that a label map is one of its frame.

    Raises:
        DatasetError: a file cannot be read; the label has another size than its frame, or more than one channel.
    """
    label = data.get("seg_map_path") if isinstance(transform, LoadAnnotations) else None
    path = label or data.get("img_path")
    try:
        if label is not None:
            check_depth(label)
        loaded = transform(data)
    except (AssertionError, OSError, SyntaxError, cv2.error) as error:
        msg = f"{path} of clip {data['clip_id']} cannot be read ({error or type(error).__name__}); write it again."
        raise DatasetError(msg) from error
    found = None if label is None or loaded is None else loaded.get("gt_seg_map")
    if found is not None:
        shape, expected = tuple(found.shape), tuple(loaded["ori_shape"][:2])
        if len(shape) != 2:
            msg = f"the label {label} has the shape {shape}; write one channel, the number of the class per pixel."
            raise DatasetError(msg)
        if shape != expected:
            sizes = "{}×{}, its frame {} {}×{}".format(*shape, data["img_path"], *expected)
            msg = f"the label {label} is {sizes}; write labels in the size and rotation in which the frame is shown."
            raise DatasetError(msg)
    return loaded


def check_depth(label: str) -> None:
    """Refuse a label map of 16 bits with values that MMSeg would cut to 8.

    Raises:
        DatasetError: a class is above 255.
    """
    if not os.path.isfile(label):  # of another storage; the transform finds it, or tells
        return
    with Image.open(label) as image:
        if image.mode.startswith(("I", "F")) and (highest := np.asarray(image).max()) > 255:
            msg = f"the label {label} has values up to {highest}; write classes 0 to 254, and 255 for what is ignored."
            raise DatasetError(msg)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block with all random generators at a seed and put them back; None leaves them alone."""
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def video_errors() -> Iterator[None]:
    """Let what is wrong with a video file or folder be an error of the data set."""
    try:
        yield
    except VideoError as error:
        raise DatasetError(str(error)) from error


def require_files(paths: Iterable[str | Path], what: str, hint: str) -> None:
    """Make sure that files exist, with one listing per folder.

    Args:
        paths: the files.
        what: what they are, e.g. ``frames of CityscapesSnippets``.
        hint: what to do when some are missing.

    Raises:
        DatasetError: some are missing; the first is named.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        wanted[folder].append(name)
    missing = []
    for folder, names in wanted.items():
        present = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        missing += [os.path.join(folder, name) for name in names if name not in present]
    if missing:
        total = sum(map(len, wanted.values()))
        msg = f"{len(missing)} of {total} {what} are missing, first {missing[0]}. {hint}"
        raise DatasetError(msg)
