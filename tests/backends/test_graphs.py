"""`torch.compile`, `torch.jit.trace`, `torch.export`, ONNX export of converted models, and the toolkits' own doors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import aimet_torch
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import Plain, Residual, assert_equal, build, max_lsb, outside, play, step_of, video
from torch import Tensor, nn

from resq_plugin import stream, summarize
from resq_plugin.errors import FoldingError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.graph  # noqa: F401  # warns of itself and of packages that would be faster
    from brevitas.export import export_onnx_qcdq, export_qonnx

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
X = video(3)


@pytest.fixture(params=["torch", "aimet", "brevitas"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def through_onnx(path: Path, frame: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    return torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: frame.numpy()})[0]))


@pytest.mark.parametrize("net", [Plain, Residual])
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model_computes_the_same(net: type[nn.Module], fullgraph: bool, backend: str) -> None:
    model = build(net, frames=X, backend=backend)
    expected = outside(model, X)
    fast = torch.compile(model, backend="eager", fullgraph=fullgraph)
    assert_equal(outside(fast, X), expected)
    model[-1 if net is Plain else 0].weight.data.mul_(2) if net is Plain else model.head.weight.data.mul_(2)
    changed = outside(model, X)
    assert not torch.equal(changed[0], expected[0])
    assert_equal(outside(fast, X), changed)  # weights are inputs of the graph, not constants


def test_a_compiled_model_in_a_stream(backend: str) -> None:
    model = build(Plain, frames=X, backend=backend)
    expected = play(model, X)
    fast = torch.compile(model, backend="eager")
    with torch.no_grad(), stream(fast) as player:
        assert_equal([player(frame) for frame in X], expected)


class Breaks(nn.Module):
    """Pairs of layer and batch norm in a forward that no compiler takes in one piece."""

    def __init__(self) -> None:
        super().__init__()
        pairs = ((nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)) for channels in (3, 4))
        self.parts = nn.ModuleList(part for pair in pairs for part in pair)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            torch._dynamo.graph_break()
            x = part(x)
        return x


@pytest.mark.parametrize("run", [outside, play])
@pytest.mark.parametrize("eager", [0, 1])
def test_what_the_compiler_leaves_in_eager_mode_computes_the_same(eager: int, run: Any, backend: str) -> None:
    """GIVEN a layer or its folded batch norm that runs as it is within a compiled call."""
    model = build(Plain, frames=X, backend=backend)
    assert summarize(model).folded == ("1",)
    expected = run(model, X)
    model[eager].forward = torch.compiler.disable(model[eager].forward)
    assert_equal(run(torch.compile(model, backend="eager"), X), expected)


def test_past_the_limits_of_the_compiler_the_model_computes_the_same(backend: str) -> None:
    """GIVEN graph breaks and more layers than the compiler keeps versions of, so that it gives some of them up."""
    model = build(Breaks, frames=X, backend=backend)
    assert len(summarize(model).folded) == 2
    expected = play(model, X)
    with torch._dynamo.config.patch(recompile_limit=2):
        assert_equal(play(torch.compile(model, backend="eager"), X), expected)


@pytest.mark.slow
@pytest.mark.parametrize("run", [outside, play])
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_is_compiled_on_its_own_computes_the_same(part: int, run: Any, backend: str) -> None:
    model = build(Plain, frames=X, backend=backend)
    expected = run(model, X)
    model[part].compile(backend="eager")
    assert_equal(run(model, X), expected)


def test_a_layer_and_its_batch_norm_that_are_compiled_apart_say_so() -> None:
    model = build(Plain, frames=X)
    whole = model[1]
    model[1] = torch.compile(whole, backend="eager")
    with pytest.raises(Exception, match=r"layer 0 .* is not compiled, while what reads its output is; compile both"):
        outside(model, X)
    model[0], model[1] = torch.compile(model[0], backend="eager"), whole
    with pytest.raises(FoldingError, match=r"layer 0 .*another tensor, .*or is not compiled while 0 is"):
        outside(model, X)


@pytest.mark.parametrize("net", [Plain, Residual])
def test_a_traced_and_an_exported_model_compute_the_same(net: type[nn.Module], backend: str) -> None:
    model = build(net, frames=X, backend=backend)
    expected = outside(model, X)
    with torch.no_grad():
        assert_equal(outside(torch.jit.trace(model, X[0]), X), expected)
        assert_equal(outside(torch.export.export(model, (X[0],)).module(), X), expected)


@pytest.mark.parametrize("net", [Plain, Residual])
@pytest.mark.parametrize("dynamo", [False, True])
def test_plain_onnx_export(net: type[nn.Module], dynamo: bool, backend: str, tmp_path: Path) -> None:
    if dynamo and backend == "aimet":
        pytest.skip("AIMET's operators export through aimet_torch.onnx.export only")
    model = build(net, frames=X, backend=backend)
    assert summarize(model).folded
    expected = outside(model, X)
    torch.onnx.export(model, (X[0],), str(tmp_path / "a.onnx"), dynamo=dynamo, external_data=False)
    for frame, z in zip(X, expected, strict=True):
        assert max_lsb(through_onnx(tmp_path / "a.onnx", frame), z, step_of(z, 8)) < 0.1


# --- toolkits' own doors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("export_int32_bias", [True, False])
@pytest.mark.parametrize("net", [Plain, Residual])
def test_the_export_of_aimet_holds_folded_batch_norms(
    net: type[nn.Module], export_int32_bias: bool, weights: str, tmp_path: Path
) -> None:
    model = build(net, "W8A8->W8A8", X, backend="aimet", weights=weights)
    assert summarize(model).folded
    expected, state = outside(model, X), list(model.state_dict())
    aimet_torch.onnx.export(model, X[0], str(tmp_path / "a.onnx"), dynamo=False, export_int32_bias=export_int32_bias)
    for frame, z in zip(X, expected, strict=True):
        assert max_lsb(through_onnx(tmp_path / "a.onnx", frame), z, step_of(z, 8)) < 3
    assert_equal(outside(model, X), expected)
    assert list(model.state_dict()) == state
    assert summarize(model).folded


@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("net", [Plain, Residual])
def test_the_export_of_brevitas_holds_folded_batch_norms(net: type[nn.Module], weights: str, tmp_path: Path) -> None:
    model = build(net, "W8A8->W8A8", X, backend="brevitas", weights=weights)
    assert summarize(model).folded
    expected = outside(model, X)
    export_onnx_qcdq(model, args=X[0], export_path=str(tmp_path / "a.onnx"), dynamo=False)
    for frame, z in zip(X, expected, strict=True):
        assert max_lsb(through_onnx(tmp_path / "a.onnx", frame), z, step_of(z, 8)) < 3
    assert_equal(outside(model, X), expected)


def test_the_qonnx_export_of_brevitas_holds_folded_batch_norms(tmp_path: Path) -> None:
    model = build(Plain, "W8A8->W8A8", X, backend="brevitas")
    export_qonnx(model, args=X[0], export_path=str(tmp_path / "a.onnx"), dynamo=False)
    tensors = [torch.tensor(onnx.numpy_helper.to_array(t)) for t in onnx.load(tmp_path / "a.onnx").graph.initializer]
    with torch.no_grad():
        expected = model[0].weight_of("float")  # with the batch norm; the graph quantizes it
    assert any(t.shape == expected.shape and torch.allclose(t, expected, atol=1e-6) for t in tensors)
