"""What cannot work on residuals, said before a run starts, with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import DefaultSampler
from mmengine.dist import get_world_size
from mmengine.model import BaseTTAModel
from torch import nn

from resq_mmengine.sampler import ClipBatchSampler, ClipSampler
from resq_plugin.errors import ConfigError

__all__ = ["check_dataloader", "check_model"]

RANDOM_TRANSFORMS = ("Random", "TestTimeAug", "MultiScaleFlipAug", "PhotoMetricDistortion")


def check_model(model: nn.Module) -> None:
    """Refuse ways of testing that run the network more than once per frame.

    Raises:
        ConfigError: test-time augmentation, flip test or slide inference; the message has the line to write.
    """
    if isinstance(model, BaseTTAModel):
        msg = (
            "test-time augmentation runs the network on several versions of a frame, which are no neighbours of the "
            "keyframe; run without --tta (without tta_model)."
        )
        raise ConfigError(msg)
    test_cfg = getattr(model, "test_cfg", None) or {}
    if test_cfg.get("mode") == "slide":
        msg = (
            "test_cfg.mode='slide' runs the network once per crop, so no crop has its keyframe; write "
            "model = dict(test_cfg=dict(_delete_=True, mode='whole')), or --cfg-options model.test_cfg.mode=whole."
        )
        raise ConfigError(msg)
    if test_cfg.get("flip_test"):
        msg = (
            "test_cfg.flip_test=True runs the network twice per frame, the second time on its mirror image; write "
            "model = dict(test_cfg=dict(flip_test=False)), or --cfg-options model.test_cfg.flip_test=False."
        )
        raise ConfigError(msg)


def check_dataloader(loader: Any, name: str) -> None:
    """Refuse data that does not come as clips in order.

    Args:
        loader: a built dataloader for evaluation.
        name: its key in the config, ``test_dataloader`` or ``val_dataloader``.

    Raises:
        ConfigError: shuffled, torn apart or unrelated frames, or random transforms; the message has the line to write.
    """
    for transform in _transforms(loader.dataset):
        if transform.startswith(RANDOM_TRANSFORMS):
            msg = (
                f"{name} has the transform {transform}, which changes neighbouring frames in different ways; take "
                f"it out of {name}.dataset.pipeline, e.g. {name} = dict(dataset=dict(pipeline=test_pipeline))."
            )
            raise ConfigError(msg)
    if isinstance(loader.batch_sampler, ClipBatchSampler):
        return
    use_clips = f"{name} = dict(sampler=dict(_delete_=True, type='resq_mmengine.ClipSampler'))"
    if not isinstance(loader.sampler, ClipSampler):
        in_order = isinstance(loader.sampler, DefaultSampler) and not loader.sampler.shuffle
        if not in_order:
            msg = f"{name} has a {type(loader.sampler).__name__} that shuffles frames; write {use_clips}."
            raise ConfigError(msg)
        if get_world_size() > 1:
            msg = f"{name} deals single frames out to {get_world_size()} processes; write {use_clips}."
            raise ConfigError(msg)
    if (loader.batch_size or 1) > 1:
        msg = (
            f"{name}.batch_size={loader.batch_size} puts frames of one clip into a batch; write "
            f"{name} = dict(batch_size=1), or for clips in step also "
            "batch_sampler=dict(type='resq_mmengine.ClipBatchSampler') and "
            "sampler=dict(_delete_=True, type='resq_mmengine.ClipSampler')."
        )
        raise ConfigError(msg)


def _transforms(dataset: Any) -> Iterator[str]:
    while hasattr(dataset, "dataset"):  # wrappers such as RepeatDataset
        dataset = dataset.dataset
    for part in getattr(dataset, "datasets", [dataset]):
        for transform in getattr(getattr(part, "pipeline", None), "transforms", []):
            yield type(transform).__name__
