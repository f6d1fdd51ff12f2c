"""The one line that brings ResQ into an unchanged config of MMSeg or MMPose."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import save_checkpoint
from mmengine.runner.loops import BaseLoop
from torch import nn

from resq_mmengine.agreement import FloatAgreement
from resq_mmengine.calibration import calibrate_from_settings, is_calibrated
from resq_mmengine.flat_state import flatten_states
from resq_mmengine.loading import fit_checkpoint
from resq_mmengine.plan_search import search_from_settings
from resq_mmengine.refusals import check_dataloader, check_model
from resq_mmengine.registry import HOOKS
from resq_mmengine.safe_load import store_histories_as_numbers
from resq_mmengine.sampler import ClipSampler
from resq_mmengine.session import PositionEvaluator, VideoSession
from resq_mmengine.settings import Settings, read_settings
from resq_mmengine.training import ResQModel
from resq_mmengine.zoo import FrameModel
from resq_plugin import ResQConfig, convert, measure_cost
from resq_plugin.conversion import float_state_dict, range_disagreement
from resq_plugin.cost import Cost
from resq_plugin.errors import CheckpointError, ConfigError, ConversionError
from resq_plugin.evaluation import Evaluation
from resq_plugin.files import written
from resq_plugin.method import residual_layers

__all__ = ["ResQHook", "frame_shape"]

logger = logging.getLogger(__name__)

store_histories_as_numbers()

CALIBRATED = "resq_calibrated.pth"


P = ParamSpec("P")


def _told(method: Callable[P, None]) -> Callable[P, None]:
    """Raise no TypeError: MMEngine takes it for a wrong signature of the hook and replaces it by one of its own."""

    @wraps(method)
    def told(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except ConversionError as error:
            raise ConfigError(str(error)) from error

    return told


@HOOKS.register_module()
class ResQHook(Hook):
    """Converts the runner's model, calibrates it and evaluates it as video.

    Put it into ``default_hooks`` with ``priority='VERY_HIGH'``, so that it comes before an ``EMAHook``, and the
    settings into the config's top-level ``resq = dict(...)``, see `read_settings`; ``resq = None`` switches it off.
    With ``resq = dict(search=dict(max_drop=0.5), ...)`` it first finds a plan on the calibration clips, leaves it in
    the work directory and runs it; a second run finds it there.

    After a test or validation, ``metrics`` hold every metric averaged over the positions of the interval, the metric
    at position t as ``<metric>_t<t>``, and ``resq/gbops_per_frame``, ``resq/gbops_keyframe``,
    ``resq/gbops_residual`` (10⁹ bit operations) and ``resq/state_mb`` (10⁶ bytes). With the schedule ``scene_change``
    they are of the frames that ran; what did not occur is NaN.

    While a `ResQModel` is trained, MMEngine's visualizer backends (TensorBoard, WandB, local files) get the scale of
    every trained quantizer as ``resq/scale/<layer>/<name>`` and the share of pixels per bit width of a dynamic pool as
    ``resq/bits/<layer>/<bits>``, beside the losses.

    Args:
        scalars_every: iterations from one such report to the next; 0 switches it off.

    Attributes:
        evaluation: the same as a core `Evaluation`, after a test or validation.
        cost: `Cost` of the model on the frames that were evaluated.
    """

    priority = "VERY_HIGH"

    def __init__(self, scalars_every: int = 50) -> None:
        self.scalars_every = scalars_every
        self.settings: Settings | None = None
        self.evaluation: Evaluation | None = None
        self.cost: Cost | None = None
        self._stack = ExitStack()
        self._shape: tuple[int, ...] | None = None

    @_told
    def before_run(self, runner: Any) -> None:
        """Read the settings, refuse what cannot work and convert the model, before any checkpoint is loaded."""
        model = _unwrap(runner.model)
        self.settings = self._read(runner, model)
        if self.settings is None:
            return
        if not isinstance(model, ResQModel) and self.settings.search is None:
            self._convert(model, self.settings.config)
        for loop, name in ((runner._val_loop, "val_dataloader"), (runner._test_loop, "test_dataloader")):
            if isinstance(loop, BaseLoop):
                self._prepare(model, loop, name)
        if isinstance(runner._train_loop, BaseLoop):
            self._prepare_training(model, runner._train_loop)

    def _read(self, runner: Any, model: nn.Module) -> Settings | None:
        values = runner.cfg.get("resq")
        if isinstance(model, ResQModel):
            if values is not None:
                msg = (
                    "the config has both resq = dict(...) and model = dict(type='resq_mmengine.ResQModel', resq=...); "
                    "write resq = None at the top level."
                )
                raise ConfigError(msg)
            return model.settings
        if values is None and "resq" not in runner.cfg:
            msg = (
                "ResQHook found no settings; write resq = dict(precision='W8A8->W4A4', interval=3) at the top level "
                "of the config, or resq = None to switch it off."
            )
            raise ConfigError(msg)
        return read_settings(values)

    def _convert(self, model: nn.Module, config: ResQConfig) -> None:
        try:
            present = next(iter(residual_layers(model).values())).settings.config
        except ConversionError:
            convert(model, config)
            flatten_states(model)
            return
        if present != config:
            msg = f"the runner's model is already converted to {present.notation}; build a new runner for another one."
            raise ConfigError(msg)

    def _prepare(self, model: nn.Module, loop: Any, name: str) -> None:
        settings = self._settings
        config = settings.config
        if config.residual is not None:
            check_model(model.architecture if isinstance(model, ResQModel) else model)
            check_dataloader(loop.dataloader, name)
        sampler = getattr(loop.dataloader.batch_sampler, "sampler", loop.dataloader.sampler)
        if isinstance(sampler, ClipSampler):
            fixed = config.schedule.kind == "interval"
            interval = config.interval if config.residual is not None else 1
            sampler.configure(interval, every_position=settings.every_position, fixed_intervals=fixed)

    def _prepare_training(self, model: nn.Module, loop: Any) -> None:
        if not isinstance(model, ResQModel):
            msg = (
                "quantization-aware training needs the quantizers in the model before its optimizer is built; write "
                "model = dict(_delete_=True, type='resq_mmengine.ResQModel', architecture=_base_.model, "
                "resq=dict(precision='W8A8->W4A4', interval=3)) and resq = None."
            )
            raise ConfigError(msg)
        model.check_training_data(loop.dataloader)
        sampler = getattr(loop.dataloader.batch_sampler, "sampler", None)
        if isinstance(sampler, ClipSampler):
            sampler.configure(self._settings.config.interval)

    @property
    def _settings(self) -> Settings:
        if self.settings is None:
            msg = "ResQHook is used before the run starts."
            raise ConfigError(msg)
        return self.settings

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network, and drop ranges of other settings when they can be found anew.

        Training may start from weights that fit in part, as MMEngine has it; what does not fit is told.

        Raises:
            CheckpointError: it does not fit; or ranges are missing and the config names no calibration clips.
        """
        model = _unwrap(runner.model)
        model = model.architecture if isinstance(model, ResQModel) else model
        try:
            fit_checkpoint(model, checkpoint, runner._load_from or "the checkpoint")
        except CheckpointError as error:
            if not isinstance(runner._train_loop, BaseLoop):
                raise
            logger.warning("training starts all the same, with what fits: %s", error)
        saved = checkpoint.get("meta", {}).get("resq")
        if self.settings is None or saved is None:
            return
        if self.settings.search is not None:
            own = _unwrap(runner.model).state_dict().keys()
            checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in own}
            return
        found, wanted = ResQConfig.from_dict(saved), self.settings.config
        differing = range_disagreement(found, wanted, residual_layers(_unwrap(runner.model)))
        if differing is None:
            return
        what = (
            f"keyframe={found.keyframe}, residual={found.residual} ({differing.found} instead of {differing.expected})"
        )
        if self.settings.clips.dataset is None:
            msg = (
                f"the checkpoint was calibrated with {what}, but the config asks for {wanted.notation}; load the "
                "float checkpoint and name calibration clips: resq = dict(calibration=dict(dataset=dict(...)))."
            )
            raise CheckpointError(msg)
        logger.warning("the checkpoint was calibrated with %s; its weights are used and ranges are found anew.", what)
        kept = float_state_dict(model).keys()
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in kept}

    @_told
    def before_train(self, runner: Any) -> None:
        """Calibrate before the first iteration: training starts from the ranges of PTQ (§5)."""
        if self.settings is not None and self._calibrate(runner):
            _synchronize_average(runner)
        model = _unwrap(runner.model)
        if isinstance(model, ResQModel):
            model.start_training()

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        """Report scales and bit shares of training."""
        model = _unwrap(runner.model)
        if not isinstance(model, ResQModel) or not self.scalars_every:
            return
        if (runner.iter + 1) % self.scalars_every == 0 and is_main_process():
            runner.visualizer.add_scalars(model.scalars(), step=runner.iter + 1)

    def before_val(self, runner: Any) -> None:
        """Find the plan that is asked for, now that the weights are there."""
        self._search(runner, "val_dataloader")

    def before_test(self, runner: Any) -> None:
        """Find the plan that is asked for, now that the weights are there."""
        self._search(runner, "test_dataloader")

    @_told
    def _search(self, runner: Any, name: str) -> None:
        settings = self.settings
        if settings is None or settings.search is None:
            return
        model = _unwrap(runner.model)
        found: list[Any] = [None]
        if is_main_process():
            scope = str(runner.cfg.get("default_scope"))
            found = [search_from_settings(model, settings, Path(runner.work_dir), scope).to_dict()]
        broadcast_object_list(found)
        self.settings = replace(settings, config=ResQConfig.from_dict(found[0]), search=None)
        self._convert(model, self.settings.config)
        self._prepare(model, runner.val_loop if name == "val_dataloader" else runner.test_loop, name)

    def before_val_epoch(self, runner: Any) -> None:
        """Evaluate as video."""
        self._start(runner, runner.val_loop)

    def before_test_epoch(self, runner: Any) -> None:
        """Evaluate as video."""
        self._start(runner, runner.test_loop)

    def _start(self, runner: Any, loop: Any) -> None:
        if self.settings is None:
            return
        self._stack.close()
        interval = 1 if self.settings.config.residual is None else None
        session = VideoSession(_unwrap(runner.model), interval)
        with_float = any(isinstance(metric, FloatAgreement) for metric in loop.evaluator.metrics)
        evaluator = loop.evaluator
        loop.evaluator = PositionEvaluator(evaluator, session, self._measure)
        self._stack.callback(setattr, loop, "evaluator", evaluator)
        if self.settings.config.residual is not None or with_float:
            self._stack.enter_context(session.installed(with_float=with_float))
        self._shape = None

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Calibrate, with the weights in place that are evaluated."""
        self._before_batch(runner, batch_idx, data_batch)

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Calibrate, with the weights in place that are evaluated."""
        self._before_batch(runner, batch_idx, data_batch)

    @_told
    def _before_batch(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        if self.settings is None or batch_idx > 0:
            return
        model = _unwrap(runner.model)
        if self._calibrate(runner) and is_main_process():
            path = Path(runner.work_dir) / CALIBRATED
            state = {key: value.cpu() for key, value in model.state_dict().items()}
            with written(path, CheckpointError) as part:
                save_checkpoint({"meta": {"resq": self.settings.config.to_dict()}, "state_dict": state}, str(part))
            logger.info("the calibrated model is in %s; --checkpoint or load_from takes it", path)
        self._shape = _frame_shape(model, data_batch)

    def _calibrate(self, runner: Any) -> bool:
        model = _unwrap(runner.model)
        if is_calibrated(model):
            return False
        calibrate_from_settings(model, self._settings)
        ranges = [model.state_dict() if is_main_process() else None]
        broadcast_object_list(ranges)
        if not is_main_process():
            model.load_state_dict(ranges[0])
        return True

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:  # noqa: ARG002
        """Give the loop its own evaluator and the model its own steps back."""
        self._stack.close()

    def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:  # noqa: ARG002
        """Give the loop its own evaluator and the model its own steps back."""
        self._stack.close()

    def _measure(self, evaluator: PositionEvaluator) -> dict[str, float]:
        """Metrics of cost, and the results for scripts."""
        found = self.evaluation = evaluator.evaluation
        model, shape = evaluator.session.model, self._shape
        if shape is None or found is None:
            return {}
        with torch.no_grad():
            cost = self.cost = measure_cost(FrameModel(model), shape, **found.amortized())
        return {
            "resq/gbops_per_frame": cost.bops_per_frame / 1e9,
            "resq/gbops_keyframe": cost.bops_keyframe / 1e9,
            "resq/gbops_residual": cost.bops_residual / 1e9,
            "resq/state_mb": cost.state_bytes / 1e6,
        }

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Store the settings that the ranges belong to."""
        if self.settings is not None:
            checkpoint.setdefault("meta", {})["resq"] = self.settings.config.to_dict()


def frame_shape(model: nn.Module, dataloader: Any) -> tuple[int, ...]:
    """Return the shape (1, 3, H, W) of the first frame of a dataloader after preprocessing."""
    return _frame_shape(model, pseudo_collate([dataloader.dataset[0]]))


def _frame_shape(model: nn.Module, data_batch: Any) -> tuple[int, ...]:
    inputs = _unwrap(model).data_preprocessor(copy.copy(data_batch), False)["inputs"]  # type: ignore[operator]
    return (1, *inputs.shape[1:])


def _unwrap(model: nn.Module) -> nn.Module:
    unwrapped: nn.Module = model.module if is_model_wrapper(model) else model
    return unwrapped


def _synchronize_average(runner: Any) -> None:
    """An averaged model was copied before calibration: give it the ranges."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.ema_model.module.load_state_dict(_unwrap(runner.model).state_dict())
