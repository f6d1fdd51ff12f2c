"""``resq eval``: accuracy against BOPs of an mm config on video, beside float and frame-by-frame quantization."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import math
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_plugin.cli import Commands, add_command, missing, require, write_json
from resq_plugin.errors import ConfigError, ResQError
from resq_plugin.files import check_folder

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.console import Console

    from resq_plugin.evaluation import Evaluation

__all__ = ["SCHEMES", "add", "evaluate_config", "prepare_config"]

NEEDS = {"mmengine": "mmseg"}
SCHEMES = ("float", "frame", "resq")
METRICS = ("mIoU", "Mean PCK", "PCK", "AP")
"""What is shown as accuracy, the first that an evaluator yields."""
HOOK = {"type": "resq_mmengine.ResQHook", "priority": "VERY_HIGH"}
SAMPLER = {"type": "resq_mmengine.ClipSampler"}
AGREEMENT = {"mmseg": "resq_mmengine.FloatAgreement", "mmpose": "resq_mmpose.JointAgreement"}
"""Agreement with the float model, by default scope of a config."""


def add(commands: Commands) -> None:
    """``resq eval CONFIG --checkpoint CK``: run MMEngine's test loop for each scheme."""
    parser = add_command(
        commands,
        "eval",
        needs=NEEDS,
        help="measure an mm config on video: float, frame by frame and ResQ, accuracy against BOPs",
        description="Run the test of an MMSeg or MMPose config on video in float, frame-by-frame quantized and with "
        "ResQ. Ranges are calibrated on resq.calibration.dataset unless the checkpoint has them. A folder of DAVIS "
        "instead of a config measures J and F of an STM.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="config file with a video dataset in test_dataloader, or a folder of DAVIS"
    )
    parser.add_argument("--checkpoint", required=True, metavar="CK", help="float or calibrated weights")
    parser.add_argument("--precision", help="instead of the config's, e.g. 'W8A8->W4A{0,4,8}'")
    parser.add_argument("--interval", type=int, metavar="T", help="frames per keyframe, instead of the config's")
    parser.add_argument("--data-root", metavar="DIR", help="data_root of the test and the calibration dataset")
    parser.add_argument(
        "--schemes", nargs="+", choices=SCHEMES, default=SCHEMES, help="what to measure (default: all)"
    )
    parser.add_argument("--agreement", action="store_true", help="also measure the agreement with the float model")
    parser.add_argument(
        "--cfg-options", nargs="+", default=(), metavar="KEY=VALUE", help="as in MMEngine, e.g. resq.weights=channel"
    )
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="for logs and the calibrated checkpoint")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.set_defaults(run=_run, missing="")  # DAVIS needs no toolkit


def _run(args: argparse.Namespace, console: Console) -> int:
    from resq_vos.command import is_davis  # noqa: PLC0415

    if is_davis(args.config):
        return _run_davis(args, console)
    require("eval", missing(NEEDS))
    from resq_mmengine.options import read_options  # noqa: PLC0415
    from resq_mmengine.zoo import load_config  # noqa: PLC0415
    from resq_plugin.conversion import read_checkpoint  # noqa: PLC0415
    from resq_plugin.report import progress_bar  # noqa: PLC0415

    if args.work_dir is not None:
        check_folder(args.work_dir, option="--work-dir")  # now, rather than after minutes of work
    if not Path(args.checkpoint).is_file():
        msg = f"--checkpoint {args.checkpoint}: there is no such file."
        raise ConfigError(msg)
    read_checkpoint(args.checkpoint)  # what cannot be read is said before the network and the data take their time
    config = prepare_config(
        load_config(args.config),
        precision=args.precision,
        interval=args.interval,
        data_root=args.data_root,
        agreement=args.agreement,
        options=read_options(args.cfg_options),
    )
    config.load_from = args.checkpoint
    rows = []
    with tempfile.TemporaryDirectory() as scratch, _said_once(), progress_bar(console) as bar:
        config.work_dir = str(args.work_dir or scratch)
        for scheme in args.schemes:
            task = bar.add_task(scheme if scheme == "float" else f"{scheme}: calibrating", total=None)

            def on_frame(done: int, total: int, task: Any = task, scheme: str = scheme) -> None:
                bar.update(task, description=scheme, completed=done, total=total)

            rows.append(evaluate_config(config, scheme, on_frame))
            bar.remove_task(task)
    _show(rows, args, console)
    if args.work_dir and "resq" in args.schemes:
        what = "Logs, the plan" if config.resq.get("search") else "Logs"
        console.print(f"{what} and the calibrated checkpoint are in {args.work_dir}", highlight=False, soft_wrap=True)
    elif config.resq.get("search") and "resq" in args.schemes:
        console.print("The plan is not kept; --work-dir DIR keeps it.", highlight=False, soft_wrap=True)
    return 0


def _run_davis(args: argparse.Namespace, console: Console) -> int:
    from resq_vos.on_davis import DavisOptions, evaluate_davis  # noqa: PLC0415

    from resq_plugin.report import progress_bar  # noqa: PLC0415

    for name in ("data_root", "work_dir"):
        if getattr(args, name) is not None:
            msg = f"--{name.replace('_', '-')} has no meaning for a folder of DAVIS; leave it out."
            raise ConfigError(msg)
    options = DavisOptions.parse(args.cfg_options)
    with progress_bar(console) as bar:
        task = bar.add_task("starting", total=None)
        found = evaluate_davis(
            args.config,
            args.checkpoint,
            options,
            precision=args.precision,
            interval=args.interval,
            schemes=args.schemes,
            on_step=lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )
        rows = [dict(row) for row in found]
    _show(rows, args, console)
    return 0


def _show(rows: list[dict[str, Any]], args: argparse.Namespace, console: Console) -> None:
    """Write the rows and print them as a table, and the accuracy by position."""
    from resq_plugin.report import rich_table  # noqa: PLC0415

    if args.json:
        write_json(args.json, {"rows": rows, "config": args.config})
    console.print(rich_table(rows))
    for row in rows:
        if row["interval"] > 1:
            values = " ".join("–" if value is None else f"{value:.2f}" for value in row["accuracy_by_position"])
            console.print(f"{row['metric']} at positions 0 ... {row['interval'] - 1}: {values}", highlight=False)


def prepare_config(
    config: Config,
    *,
    precision: str | None = None,
    interval: int | None = None,
    data_root: str | None = None,
    agreement: bool = False,
    options: dict[str, Any] | None = None,
) -> Config:
    """Return a copy of a config with the ResQ fragment: settings, hook and sampler, as far as it lacks them.

    Args:
        config: a config of MMSeg or MMPose with a video dataset in ``test_dataloader``.
        precision: instead of the config's.
        interval: T, instead of the config's.
        data_root: of the test and the calibration dataset.
        agreement: measure the agreement with the float model, too.
        options: dotted keys to override, as in ``--cfg-options``.

    Raises:
        ConfigError: the config has no test data.
    """
    from resq_mmengine.zoo import architecture_of  # noqa: PLC0415

    config = copy.deepcopy(config)
    config.merge_from_dict(options or {})
    if not config.get("test_dataloader") or not config.get("test_evaluator"):
        msg = f"{config.filename} has no test_dataloader or no test_evaluator; nothing can be measured."
        raise ConfigError(msg)
    architecture = architecture_of(config)
    trained = None if architecture is config.model else config.model.get("resq")
    config.model = architecture
    settings = dict(config.get("resq") or trained or {"precision": "W8A8->W4A4", "interval": 3})
    settings |= {} if precision is None else {"precision": precision}
    settings |= {} if interval is None else {"interval": interval}
    if precision is not None:
        settings = {key: value for key, value in settings.items() if key not in ("keyframe", "residual", "search")}
    loader = dict(config.test_dataloader)
    if loader.get("sampler", {}).get("type") == "DefaultSampler":
        loader["sampler"] = SAMPLER
    if data_root is not None:
        loader["dataset"] = {**loader["dataset"], "data_root": data_root}
        calibration = dict(settings.get("calibration", {}))
        if calibration.get("dataset"):
            calibration["dataset"] = {**calibration["dataset"], "data_root": data_root}
        settings["calibration"] = calibration
    evaluators = config.test_evaluator if isinstance(config.test_evaluator, (list, tuple)) else [config.test_evaluator]
    config.resq, config.test_dataloader = settings, loader
    config.default_hooks = {**config.get("default_hooks", {}), "resq": HOOK}
    config.test_evaluator = [*evaluators, *([{"type": AGREEMENT[config.default_scope]}] if agreement else [])]
    return config


def evaluate_config(
    config: Config, scheme: str, on_frame: Callable[[int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Run MMEngine's test loop on a prepared config in one scheme and return its row.

    Args:
        config: from `prepare_config`.
        scheme: ``float``, ``frame`` (the keyframe precision for every frame) or ``resq``.
        on_frame: told after every batch how many are done, and of how many.

    Raises:
        ResQError: whatever the settings, the data or the checkpoint lack.
    """
    from mmengine.runner import Runner  # noqa: PLC0415

    from resq_mmengine import mmcv_lite  # noqa: PLC0415
    from resq_mmengine.hook import ResQHook, frame_shape  # noqa: PLC0415
    from resq_mmengine.pipelines import check_packed  # noqa: PLC0415
    from resq_mmengine.progress import ProgressHook  # noqa: PLC0415
    from resq_mmengine.settings import read_settings  # noqa: PLC0415
    from resq_mmengine.zoo import FrameModel  # noqa: PLC0415
    from resq_plugin import ResQConfig, measure_cost  # noqa: PLC0415
    from resq_plugin.comparison import Setting, row_of  # noqa: PLC0415

    mmcv_lite.install()
    config = copy.deepcopy(config)
    settings = read_settings(config.resq)
    if settings is None:
        msg = f"{config.filename} has resq = None; write resq = dict(precision='W8A8->W4A4', interval=3)."
        raise ConfigError(msg)
    if scheme != "resq":
        notation = "W32A32" if scheme == "float" else str(settings.config.keyframe)
        values = {k: v for k, v in config.resq.items() if k not in ("keyframe", "residual", "search")}
        config.resq = None if scheme == "float" else {**values, "precision": notation}
        if scheme == "float":
            config.test_evaluator = [e for e in config.test_evaluator if e["type"] not in AGREEMENT.values()]
    config.log_level = "ERROR"
    # Runs of one second would share a visualizer, whose folder may be gone.
    config.experiment_name = f"resq-{uuid.uuid4().hex}"
    with _quiet(), _errors_of_workers():
        with _errors_of_config(config):
            runner = Runner.from_cfg(config)
            loop = runner.test_loop  # with its data
            check_packed(loop.dataloader.dataset[0], "test_dataloader.dataset")
        runner.register_hook(ProgressHook(on_frame, len(loop.dataloader)))
        with _errors_of_files(config):
            metrics = runner.test()
    model = FrameModel(runner.model)
    shape = frame_shape(runner.model, runner.test_dataloader)
    hook = next(hook for hook in runner.hooks if isinstance(hook, ResQHook))
    name = _accuracy_name(metrics)
    ran = settings if hook.settings is None else hook.settings  # with the plan, where one was found
    chosen = {"float": None, "frame": settings.config.replace(residual=None), "resq": ran.config}[scheme]
    base = measure_cost(model, shape, ResQConfig.parse("W8A8")).bops_per_frame
    found = _evaluation(metrics, hook.evaluation, name, 1 if scheme != "resq" else ran.config.interval)
    row = row_of(Setting(chosen), found, hook.cost or measure_cost(model, shape), base, name)
    return {**row, "accuracy_by_position": row["by_distance"]}


def _evaluation(metrics: dict[str, Any], measured: Evaluation | None, name: str, length: int) -> Evaluation:
    """What was measured at every position of an interval, NaN at one that did not occur; of float all at one."""
    from resq_plugin.evaluation import Evaluation  # noqa: PLC0415

    if measured is None:
        return Evaluation({name: (float(metrics[name]),), "agreement": (100.0,)})
    by_distance = {
        key: (*values, *[math.nan] * (length - len(values))) for key, values in measured.by_distance.items()
    }
    return replace(measured, by_distance=by_distance)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the toolkits print, and say of their own deprecations: nothing that our user can act on.

    What we ourselves warn of changes a result, and is shown.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"resq_")
        yield


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Let a warning of ours be shown once, although every scheme says it again."""
    filters = [(handler, _New()) for handler in logging.getLogger().handlers]
    for handler, new in filters:
        handler.addFilter(new)
    try:
        yield
    finally:
        for handler, new in filters:
            handler.removeFilter(new)


class _New(logging.Filter):
    """Lets each message of ours through once, and those of others always."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        text = record.getMessage()
        is_new = not record.name.startswith("resq_") or text not in self.said
        self.said.add(text)
        return is_new


@contextlib.contextmanager
def _errors_of_config(config: Config) -> Iterator[None]:
    """Let what a toolkit says of a config that it cannot build be one line."""
    from resq_mmengine.pipelines import telling  # noqa: PLC0415

    with telling(f"the test of {config.filename} cannot be built"), _errors_of_files(config):
        yield


@contextlib.contextmanager
def _errors_of_files(config: Config) -> Iterator[None]:
    """Let a path of a config that is not there be one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        reason = str(error).strip().splitlines()[-1]
        root = config.test_dataloader["dataset"].get("data_root")
        msg = (
            f"a file that {config.filename} names cannot be read: {reason}; its data_root is {root!r}: write "
            "--data-root DIR, or --cfg-options test_dataloader.dataset.KEY=VALUE."
        )
        raise ConfigError(msg) from error


@contextlib.contextmanager
def _errors_of_workers() -> Iterator[None]:
    """Let an error of a data loader's process be the line it was there, without that process's traceback."""
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        _, told, line = str(error).rpartition(f"{name}: ")
        if "Original Traceback" not in str(error) or not told:
            raise
        if isinstance(error, ResQError):
            raise type(error)(line.strip()) from error
        msg = f"a frame of test_dataloader.dataset cannot be made: {name}: {' '.join(line.split())[:400]}"
        raise ConfigError(msg) from error


def _accuracy_name(metrics: dict[str, Any]) -> str:
    for wanted in METRICS:
        for name in metrics:
            if name.rpartition("/")[2] == wanted:
                return name
    if not metrics:
        msg = "the evaluator of the config yields no metric."
        raise ResQError(msg)
    return next(iter(metrics))
