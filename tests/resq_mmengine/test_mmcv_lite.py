"""The toolkits import with mmcv-lite, and only a call of a compiled operator fails."""

from __future__ import annotations

import importlib
import inspect
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")

from resq_mmengine import mmcv_lite

from resq_plugin.errors import ResQError


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bridge is installed yet, and mmcv has no compiled operators."""
    monkeypatch.delitem(sys.modules, mmcv_lite.EXTENSION, raising=False)
    if find_spec(mmcv_lite.EXTENSION) is not None:
        pytest.skip("the compiled mmcv is installed")


@pytest.mark.usefixtures("lite")
class TestWithMmcvLite:
    def test_installs_once(self) -> None:
        assert mmcv_lite.install()
        placeholders = sys.modules[mmcv_lite.EXTENSION]
        assert mmcv_lite.install()
        assert sys.modules[mmcv_lite.EXTENSION] is placeholders

    @pytest.mark.parametrize("name", ["mmcv.ops", "mmdet.models", "mmseg.models", "mmpose.models"])
    def test_the_toolkits_import(self, name: str) -> None:
        pytest.importorskip(name.partition(".")[0])
        mmcv_lite.install()
        assert importlib.import_module(name)

    def test_a_call_names_the_operator_and_what_to_install(self) -> None:
        mmcv_lite.install()
        ops = importlib.import_module("mmcv.ops")
        boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)

        with pytest.raises(mmcv_lite.MissingOperatorError, match=r"operator 'nms' is called.*pip install 'mmcv>=2\.0"):
            ops.nms(boxes, scores, 0.5)

    def test_a_layer_of_a_compiled_operator_can_be_built_but_not_run(self) -> None:
        mmcv_lite.install()
        ops = importlib.import_module("mmcv.ops")
        layer = ops.DeformConv2d(2, 2, 3)

        with pytest.raises(mmcv_lite.MissingOperatorError, match="deform_conv_forward"):
            layer(torch.zeros(1, 2, 5, 5), torch.zeros(1, 18, 3, 3))

    def test_mmengine_is_not_told_that_mmcv_is_compiled(self) -> None:
        mmcv_lite.install()
        from mmengine.utils.dl_utils.misc import mmcv_full_available

        assert not mmcv_full_available()

    def test_facts_about_the_build_answer(self) -> None:
        mmcv_lite.install()
        ops = importlib.import_module("mmcv.ops")
        assert ops.get_compiler_version() == ops.get_compiling_cuda_version() == "n/a"

    def test_introspection_is_not_fooled(self) -> None:
        mmcv_lite.install()
        placeholders = sys.modules[mmcv_lite.EXTENSION]
        assert not hasattr(placeholders, "__file__")
        assert not hasattr(placeholders, "__wrapped__")
        assert inspect.getmodule(placeholders.nms) is not placeholders
        assert placeholders.nms is placeholders.nms
        assert placeholders.nms.__name__ == "nms"


def test_with_the_compiled_mmcv_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ModuleType(mmcv_lite.EXTENSION)
    compiled.__spec__ = ModuleSpec(mmcv_lite.EXTENSION, loader=None)
    monkeypatch.setitem(sys.modules, mmcv_lite.EXTENSION, compiled)

    assert not mmcv_lite.install()
    assert sys.modules[mmcv_lite.EXTENSION] is compiled


def test_without_any_mmcv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, mmcv_lite.EXTENSION, raising=False)
    monkeypatch.setattr(mmcv_lite, "find_spec", lambda name: None)

    with pytest.raises(ResQError, match="mmcv-lite"):
        mmcv_lite.install()
