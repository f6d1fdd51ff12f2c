"""Models of MMSeg and MMPose from a config file or a model-zoo name, without weights and without network access."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from resq_mmengine import mmcv_lite
from resq_plugin.errors import ConfigError, ResQError, nearest

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["TOOLKITS", "FrameModel", "ToolkitMissingError", "architecture_of", "build_model", "load_config"]

logger = logging.getLogger(__name__)

TOOLKITS = ("mmseg", "mmpose")
"""Import names of the toolkits whose models are built; each is also the name of an extra of resq-plugin."""

EXAMPLE = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"

_WEIGHT_SOURCES = ("init_cfg", "pretrained")
_SYNC_NORMS = ("SyncBN", "MMSyncBN", "naiveSyncBN", "naiveSyncBN2d", "naiveSyncBN3d")


class ToolkitMissingError(ResQError, ImportError):
    """MMEngine or a toolkit that a configuration asks for is not installed."""


def load_config(source: str | Path) -> Config:
    """Load an mm configuration.

    Args:
        source: path of a config file, or a model-zoo name ``toolkit::path/below/configs.py`` such as
            ``mmpose::body_2d_keypoint/topdown_heatmap/mpii/td-hm_hrnet-w32_8xb64-210e_mpii-256x256.py``.

    Raises:
        ConfigError: unknown toolkit, no such file or zoo name (the nearest are named), or a file mmengine cannot read.
        ToolkitMissingError: mmengine or the toolkit is not installed.
    """
    path = _locate(str(source))
    _require("mmengine", "mmseg")
    mmcv_lite.install()
    from mmengine.config import Config  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            return Config.fromfile(str(path))
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "pkg_resources":
            # mmengine finds the package of a `mmseg::...` base with it and does not declare it as a dependency.
            msg = f"{source} has a base from a model zoo, for which mmengine needs: pip install 'setuptools<81'"
            raise ToolkitMissingError(msg) from error
        msg = f"mmengine cannot read the config {source}: {type(error).__name__}: {error}"
        raise ConfigError(msg) from error


def build_model(source: str | Path | Config, cfg_options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model in eval mode with random weights, on the CPU and without network access.

    Every ``init_cfg`` and ``pretrained`` is dropped, so nothing is downloaded, and synchronised batch norm becomes
    plain batch norm, which also runs on a CPU and outside a process group.

    Args:
        source: as in `load_config`, or a config that is already loaded (it is not changed). Of a config for training
            with `ResQModel` its architecture is built.
        cfg_options: dotted keys to override, as in mmengine's ``--cfg-options``, e.g.
            ``{"model.head.out_channels": 15}``.

    Raises:
        ConfigError: as in `load_config`; or the toolkit cannot build the model.
        ToolkitMissingError: mmengine or the toolkit is not installed.
    """
    config = load_config(source) if isinstance(source, (str, Path)) else copy.deepcopy(source)
    name = source if isinstance(source, (str, Path)) else config.filename or "the given config"
    if cfg_options:
        config.merge_from_dict(dict(cfg_options))
    toolkit = _toolkit(config.get("default_scope"), f"default_scope of {name}")
    if "model" not in config:
        msg = f"{name} has no 'model'; give a complete config such as {EXAMPLE}, not a fragment."
        raise ConfigError(msg)
    mmcv_lite.install()
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415
    from mmengine.registry import MODELS, DefaultScope  # noqa: PLC0415

    description = copy.deepcopy(architecture_of(config))
    _make_standalone(description)
    try:
        with DefaultScope.overwrite_default_scope(toolkit), warnings.catch_warnings():
            # What the toolkits say of their own deprecations and losses is nothing that our user can act on.
            warnings.filterwarnings("ignore", module=r"(mmcv|mmengine|mmdet|mmseg|mmpose)\b")
            warnings.filterwarnings("ignore", message=".*invalid escape sequence")
            model: nn.Module = MODELS.build(description)
    except Exception as error:
        msg = f"{toolkit} cannot build the model of {name}: {type(error).__name__}: {error}"
        raise ConfigError(msg) from error
    # Classes may ask for synchronised batch norm by their defaults, which no config shows.
    model = revert_sync_batchnorm(model).eval()
    logger.debug("built %s of %s", type(model).__name__, name)
    return model


def architecture_of(config: Config) -> Any:
    """Return the config of the float model: that of a model in training, `ResQModel`, is inside it."""
    is_trained = str(config.model.get("type")).rpartition(".")[2] == "ResQModel" and "architecture" in config.model
    return config.model.architecture if is_trained else config.model


class FrameModel(nn.Module):
    """An mm model as a plain network from one frame to the raw output of its head.

    Backbone, neck and head run; pre- and post-processing do not. It shares the children and parameters of the model
    under the same names: what is converted, loaded or moved here is so there, and patterns of layer names fit both.

    Args:
        model: an MMSeg segmentor or MMPose estimator.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        # Not as a child, which would put a prefix before every name.
        self.__dict__["model"] = model
        self.training = model.training

    def train(self, mode: bool = True) -> FrameModel:
        """Set the mode of both."""
        self.model.train(mode)
        self.training = mode
        return self

    def forward(self, frame: Tensor) -> Any:
        """Run one frame.

        Args:
            frame: normalised frame (N, 3, H, W).

        Returns:
            What the head returns: class scores (N, classes, H', W') of MMSeg, heat maps (N, keypoints, H', W') of
            MMPose, or a tuple of tensors.
        """
        return self.model(frame, None, mode="tensor")


def _locate(source: str) -> Path:
    if "::" in source:
        toolkit, _, name = source.partition("::")
        return _locate_in_zoo(_toolkit(toolkit, f"toolkit of {source}"), name)
    if Path(source).is_file():
        return Path(source)
    zoos = [toolkit for toolkit in TOOLKITS if find_spec(toolkit) and (_zoo(toolkit) / source).is_file()]
    hint = f"Did you mean {zoos[0]}::{source}?" if zoos else f"From a model zoo write for example {EXAMPLE}."
    msg = f"no config file {source}. {hint}"
    raise ConfigError(msg)


def _locate_in_zoo(toolkit: str, name: str) -> Path:
    zoo = _zoo(toolkit)
    path = zoo / name
    if name and path.is_file() and path.resolve().is_relative_to(zoo.resolve()):
        return path
    names = [entry.relative_to(zoo).as_posix() for entry in zoo.rglob("*.py") if "_base_" not in entry.parts]
    close = get_close_matches(name, names, n=3, cutoff=0.3)
    nearby = " Nearest: " + ", ".join(f"{toolkit}::{entry}" for entry in close) + "." if close else ""
    msg = f"{toolkit} has no config {name!r} among its {len(names)} in {zoo}.{nearby}"
    raise ConfigError(msg)


def _zoo(toolkit: str) -> Path:
    """Folder of the toolkit's configs: inside the installed package, or beside it in a source checkout."""
    spec = find_spec(toolkit)
    package = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    installed = package / ".mim" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _toolkit(name: str | None, what: str) -> str:
    if name not in TOOLKITS:
        msg = f"{what} is {name!r}; supported are {', '.join(TOOLKITS)}, e.g. {EXAMPLE}.{nearest(str(name), TOOLKITS)}"
        raise ConfigError(msg)
    _require(name, name)
    return name


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        msg = f"{package} is not installed; write: pip install 'resq-plugin[{extra}]'"
        raise ToolkitMissingError(msg)


def _make_standalone(node: Any) -> None:
    """Drop the sources of weights and replace synchronised batch norm, in place and at every depth."""
    if isinstance(node, dict):
        for key in _WEIGHT_SOURCES:
            node.pop(key, None)
        if node.get("type") in _SYNC_NORMS:
            node["type"] = "BN"
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _make_standalone(child)
