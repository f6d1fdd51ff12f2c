"""One contract per private name of AIMET that the adapter uses, and the version guard."""

from __future__ import annotations

import copy
import pickle
from importlib.metadata import version

import pytest
import torch
from aimet_torch import nn as aimet_nn
from aimet_torch.meta.connectedgraph import ConnectedGraph
from aimet_torch.onnx_utils import map_torch_types_to_onnx
from aimet_torch.quantization.affine import QuantizeDequantize
from helpers import video
from resq_aimet import _compat
from resq_aimet.classes import RESQ_CLASSES, ResQQuantizedConv2d
from torch import Tensor, nn

from resq_plugin.errors import ConversionError


@pytest.mark.parametrize("found", ["2.42.0", "2.43.1", "2.44.0rc1", version("aimet-torch")])
def test_tested_versions_pass(found: str) -> None:
    _compat.check_version(found)


@pytest.mark.parametrize("found", ["2.41.9", "2.45.0", "3.0", "1.99.0"])
def test_other_versions_name_the_line_to_install(found: str) -> None:
    with pytest.raises(ConversionError, match=rf'aimet-torch {found} is not.*pip install "aimet-torch>=2\.42,<2\.45"'):
        _compat.check_version(found)


def test_qcls_to_cls_knows_the_float_class_of_every_layer() -> None:
    for plain, resq in RESQ_CLASSES.items():
        assert aimet_nn.QuantizationMixin.qcls_to_cls[resq] is plain
        assert issubclass(resq, aimet_nn.QuantizationMixin.cls_to_qcls[plain])
        assert aimet_nn.QuantizationMixin.cls_to_qcls[plain] is not resq


def test_onnx_types_are_those_of_aimets_classes() -> None:
    assert map_torch_types_to_onnx[ResQQuantizedConv2d] == map_torch_types_to_onnx[nn.Conv2d] == ["Conv"]


def test_a_quantizer_that_observes_has_a_forward_of_its_own() -> None:
    quantizer = QuantizeDequantize((), 8, symmetric=True)
    assert not _compat.is_observing(quantizer)
    assert not _compat.is_observing(None)
    with quantizer.compute_encodings():
        assert _compat.is_observing(quantizer)
        quantizer(torch.ones(2))
    assert not _compat.is_observing(quantizer)


def test_plain_tensors_of_quantized_ones() -> None:
    quantizer, x = QuantizeDequantize((), 8, symmetric=True), torch.tensor([0.26, -1.0])
    quantizer.set_range(-1.275, 1.275)
    found = _compat.plain(quantizer(x))
    assert type(quantizer(x)) is not Tensor
    assert type(found) is Tensor
    assert torch.equal(found, quantizer(x).as_subclass(Tensor))
    assert _compat.plain(x) is x


def test_quant_init_gives_a_float_layer_the_places_of_quantizers() -> None:
    layer = nn.Conv2d(1, 1, 1)
    layer.__class__ = aimet_nn.QuantizedConv2d
    layer.__quant_init__()
    assert list(layer.param_quantizers) == ["weight", "bias"]
    assert (len(layer.input_quantizers), len(layer.output_quantizers)) == (1, 1)
    assert "_param_pre_quantizers" in vars(layer)


def test_aimet_computes_weight_encodings_through_one_method() -> None:
    class Watched(aimet_nn.QuantizedConv2d):
        def _compute_param_encodings(self, overwrite: bool) -> None:
            asked.append(overwrite)

    asked: list[bool] = []
    layer = Watched(3, 2, 1)
    layer(video(1)[0])
    layer.compute_param_encodings()
    with layer.compute_encodings():
        pass
    assert asked == [False, True, True]


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning")
def test_the_graph_of_a_converted_sim_refuses_and_is_released() -> None:
    graph = ConnectedGraph(nn.Sequential(nn.Conv2d(3, 2, 1)), (video(1)[0],))
    graph.assert_safe()
    _compat.guard_graph(graph)
    for guarded in (graph, copy.copy(graph)):
        with pytest.raises(ConversionError, match="this sim has residual paths already"):
            guarded.assert_safe()
    assert pickle.loads(pickle.dumps(graph.assert_safe)) is graph.assert_safe
    _compat.release_graph(graph)
    graph.assert_safe()
    _compat.guard_graph(None)
    _compat.release_graph(None)
