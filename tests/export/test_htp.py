"""Qualcomm's HTP: both graphs compiled by its compiler and run on its arithmetic, no operator left to the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import build, video
from torch import nn

from resq_plugin.cli import main
from resq_plugin.export import HtpConfig, OrtStream, export_model, verify, verify_htp
from resq_plugin.export.htp import build as htp_build
from resq_plugin.export.htp.faults import coarser_grids
from resq_plugin.export.htp.layers import compare_layers
from resq_plugin.export.htp.session import RefusedError, htp_session
from resq_plugin.export.manifest import Manifest

pytest.importorskip("onnxruntime_qnn", reason="the extra htp is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of onnxruntime.quantization

FRAMES = video(10)
LAYER_LSB = 2
"""What a single layer may differ from ONNX Runtime on the CPU, in LSB of its 8-bit output."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("htp") / "out"
    model = build("residual", "W8A8->W4A8", frames=FRAMES, reference="quantized", weights="channel")
    export_model(model, FRAMES, folder, encodings=(), htp=HtpConfig(arch=75, soc=57))
    return folder


def _steps(graph: str) -> list[str]:
    """Its operators, both sessions, and two frames."""
    return [f"{graph} graph: operators", *[f"{graph} graph"] * 3]


def test_both_graphs_run_whole_and_every_layer_is_close(exported: Path) -> None:
    steps: list[tuple[str, int]] = []
    found = verify_htp(exported, frames=2, on_step=lambda text, total: steps.append((text, total)))

    assert steps == [(text, 8) for text in (*_steps("keyframe"), *_steps("residual"))]
    assert [graph.graph for graph in found.graphs] == ["keyframe", "residual"]
    assert found.worst_layer <= LAYER_LSB
    weights = {layer.weight for layer in found.layers}
    convolutions = {"stem.0", "conv1", "conv2", "downsample.0"}
    assert weights >= {f"{name}.weight" for name in convolutions}
    assert weights >= {f"{name}.residual.weight" for name in convolutions}
    assert found.carried == {}
    assert found.passed
    for graph in found.graphs:
        assert graph.tensors[0].lsb <= 3
        assert graph.agreement_cpu == 100
        assert graph.agreement_torch == 100


def test_the_player_plays_on_it(exported: Path) -> None:
    htp, cpu = OrtStream(exported, device="htp"), OrtStream(exported, threads=1)
    worst = 0.0
    for frame in FRAMES[:4]:
        ours, expected = htp(frame.numpy()), cpu(frame.numpy())
        worst = max(worst, np.abs(ours - expected).max() / (2 * np.abs(expected).max() / 255))

    assert htp.position == 0
    assert worst <= 4  # LSB of the output, the 8-bit memory fed back
    assert {cache.dtype for cache in htp.caches} == {"uint8"}
    assert htp.state_bytes() < 0.5 * cpu.state_bytes()


def test_verify_plays_the_clip_on_it_with_memory_as_it_holds_it(exported: Path) -> None:
    found = verify(exported, device="htp")
    assert found.passed
    assert found.agreement == 100
    for graph in verify_htp(exported, frames=10, layers=False).graphs:  # another way to the same numbers
        assert found.worst(graph.graph) == pytest.approx(graph.lsb)


def test_what_a_device_loads_is_written(exported: Path) -> None:
    manifest = Manifest.read(exported)

    assert manifest.htp is not None
    assert (manifest.htp.arch, manifest.htp.soc) == (75, 57)
    for kind in ("keyframe", "residual"):
        graph = onnx.load(exported / "htp" / f"{kind}_context.onnx").graph
        assert {node.op_type for node in graph.node} == {"EPContext"}  # one compiled part, nothing beside it
    assert any(name.endswith(".bin") for name in manifest.files)
    assert "htp/keyframe.onnx" in manifest.files


def test_weights_are_4_bits_natively_and_memory_shares_its_grids(exported: Path) -> None:
    key, residual = (onnx.load(exported / "htp" / f"{kind}.onnx").graph for kind in ("keyframe", "residual"))
    types = {tensor.name: tensor.data_type for tensor in residual.initializer}

    assert types["conv1.residual.weight_quantized"] == onnx.TensorProto.INT4
    for name in ("conv1.x", "conv1.z"):
        grids = [
            {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.startswith(name)}
            for graph in (key, residual)
        ]
        assert np.array_equal(grids[0][f"{name}_scale"], grids[1][f"{name}_scale"])
        assert np.array_equal(grids[0][f"{name}_zero_point"], grids[1][f"{name}_zero_point"])


def test_fewer_bits_ride_in_8_exactly(tmp_path: Path) -> None:
    model = build("plain", "W4A4->W3A3", frames=FRAMES, reference="quantized")
    half = model[3].keyframe_quantizer.range[1] / 2
    model[3].keyframe_quantizer.set_range(-half, half)  # so that inputs leave the grid
    export_model(model, FRAMES, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))
    player = OrtStream(tmp_path / "out", device="htp")

    player(FRAMES[0].numpy())
    cache = next(cache for cache in player.caches if cache.name == "3.x")
    steps = player._memory["3.x"].numpy().astype(int) - cache.zero_point

    assert cache.dtype == "uint8"
    assert cache.scale == pytest.approx(float(model[3].keyframe_quantizer.scale))
    assert (steps.min(), steps.max()) == (0, 7)  # behind a ReLU, on the grid -8 ... 7
    found = verify_htp(tmp_path / "out", frames=1)
    assert found.worst_layer <= LAYER_LSB
    assert found.passed
    assert found.carried["3"] == (
        "keyframe A int8 (carries 4 bits, clipped)",
        "residual W int4 (carries 3 bits, clipped)",
        "residual A int8 (carries 3 bits, clipped)",
    )


@pytest.mark.parametrize("fault", ["replace_norms", "limit_clips"])
def test_what_the_compiler_gets_wrong_is_avoided_and_would_not_pass(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch norm behind an addition (pyramid), a ReLU6 whose 6 lies beyond the grid (mobile).

    Of six seeds of the video five hit the fault of batch norms, by single channels.
    """
    frames = video(10, seed=3)
    net = {"replace_norms": "pyramid", "limit_clips": "mobile"}[fault]
    model = build(net, "W8A8->W4A8", frames=frames, reference="quantized", weights="channel")
    verified = {}
    for avoided in (True, False):
        if not avoided:
            monkeypatch.setattr(htp_build, fault, lambda _: {})
        export_model(model, frames, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))
        verified[avoided] = verify_htp(tmp_path / "out", frames=1, layers=False)

    assert verified[True].passed
    assert max(graph.lsb for graph in verified[True].graphs) < 4
    assert not verified[False].passed
    assert max(graph.lsb for graph in verified[False].graphs) > 50
    assert max(graph.limit for graph in verified[False].graphs) < 10


class Bottleneck(nn.Sequential):
    """Layers that read each other's output with nothing between, as MobileNetV2's, with batch norms."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 4, 1),
        )


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
@pytest.mark.parametrize("fold", [True, False])
def test_layers_behind_layers_and_batch_norms_between_them(tmp_path: Path, reference: str, fold: bool) -> None:
    """z_k of one is x_k of the next, each on its own grid; a batch norm's output is memory by its own name."""
    model = build(Bottleneck, "W8A8->W4A8", frames=FRAMES, reference=reference, weights="channel", fold=fold)
    export_model(model, FRAMES, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))
    found = verify_htp(tmp_path / "out", frames=2)

    assert found.worst_layer <= LAYER_LSB
    assert found.passed
    assert [graph.watched for graph in found.graphs] == [0, 0]
    assert all(graph.lsb <= 8 for graph in found.graphs)
    assert {layer.operator for layer in found.layers} >= {"Conv", "Sub", "Add", "Clip", "QuantizeLinear"}
    graph = onnx.load(tmp_path / "out" / "htp" / "keyframe.onnx").graph
    scales = {
        t.name: float(onnx.numpy_helper.to_array(t))
        for t in graph.initializer
        if "x" in t.name and t.name.endswith("_scale") and t.dims in ([], [1])
    }
    own = pytest.approx(float(model[2].keyframe_quantizer.scale))
    assert own in scales.values()  # the layer that reads a layer or a batch norm is on the grid it was calibrated for


def test_a_range_found_on_a_still_clip_leaves_no_layer_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """δ is 0 on the clip and so is the product; played on frames that move, the layer must not stay at 0."""
    model = build("plain", "W8A8->W4A8", frames=FRAMES, reference="float", weights="channel")
    worst = {}
    for avoided in (True, False):
        if not avoided:
            monkeypatch.setattr(htp_build, "coarser_grids", lambda _: {})
        out = tmp_path / str(avoided)
        export_model(model, [FRAMES[0]] * 10, out, encodings=(), htp=HtpConfig(compile=False))
        player = OrtStream(out, device="htp")
        player(FRAMES[0].numpy())
        feed = {"frame": FRAMES[2].numpy(), **{name: value.numpy() for name, value in player._memory.items()}}
        layers, _ = compare_layers(out / "htp" / "residual.onnx", 75, None, feed)
        worst[avoided] = max(layer.lsb for layer in layers if layer.operator == "Conv")

    assert worst[True] <= LAYER_LSB
    assert worst[False] >= 127


def one_layer(path: Path, ratio: float, bias: int | None = None) -> None:
    """A 1x1 convolution whose accumulator has steps of 0.027 / 127 * 127, ``ratio`` steps of its output."""
    helper, kinds = onnx.helper, onnx.TensorProto
    scale = np.float32(0.0235 * ratio / 0.027)
    values = {
        "x_scale": np.float32(0.027),
        "x_zero": np.uint8(103),
        "w_scale": np.full(4, scale, np.float32),
        "w_zero": np.zeros(4, np.int8),
        "w": np.full((4, 1, 1, 1), 127, np.int8),
        "y_scale": np.float32(0.0235),
        "y_zero": np.uint8(100),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], axis=0),
    ]
    inputs = ["x_float", "w_float"]
    if bias is not None:
        values |= {
            "b": np.full(4, bias, np.int32),
            "b_scale": np.full(4, scale * np.float32(0.027), np.float32),
            "b_zero": np.zeros(4, np.int32),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_float"], axis=0))
        inputs.append("b_float")
    nodes += [
        helper.make_node("Conv", inputs, ["y_float"], group=4),
        helper.make_node("QuantizeLinear", ["y_float", "y_scale", "y_zero"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", kinds.UINT8, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", kinds.UINT8, [1, 4, 8, 8])
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.mark.parametrize("ratio", [64, 512])
def test_the_compiler_still_has_the_fault_that_coarser_grids_avoid(tmp_path: Path, ratio: int) -> None:
    """A step of the accumulator over a step of the output: right up to 128, zero from 256 on. Says when to drop it."""
    one_layer(tmp_path / "one.onnx", ratio)

    (found,) = htp_session(tmp_path / "one.onnx", 75).run(None, {"x": np.full((1, 4, 8, 8), 105, np.uint8)})

    assert set(found.flat) == ({255} if ratio == 64 else {100})  # 2 * 127 * ratio is far beyond 255; 100 stands for 0
    grids = coarser_grids(tmp_path / "one.onnx")
    assert set(grids) == (set() if ratio == 64 else {"y"})
    if grids:
        assert grids["y"].scale[0] == pytest.approx(0.0235 * 512 / 128)
        assert grids["y"].zero_point == 25  # 100 * 128 / 512: the lower end stays


@pytest.mark.parametrize(
    ("ratio", "bias", "lsb", "limit"), [(9.4, 1, 9, 11), (9.4, 0, 0, 2), (0.5, 1, 1, 2), (60, 2, 0, 16)]
)
def test_an_operator_may_differ_by_a_step_of_what_it_computes_with(
    tmp_path: Path, ratio: float, bias: int, lsb: int, limit: int
) -> None:
    """A bias of 1 is truncated to 0, which is a step of the accumulator: ⌊9.4⌉ = 9 LSB; at most ⌈9.4⌉ + 1."""
    one_layer(tmp_path / "one.onnx", ratio, bias)

    ((layer,), _) = compare_layers(tmp_path / "one.onnx", 75, None, {"x": np.full((1, 4, 8, 8), 103, np.uint8)})

    assert layer.lsb <= lsb
    assert layer.limit == limit
    assert layer.passed
    assert not dataclasses.replace(layer, lsb=limit + 1).passed


def test_a_clip_with_one_end_keeps_it(tmp_path: Path) -> None:
    class Floor(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), Clamp(), nn.Conv2d(4, 2, 1))

    class Clamp(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clamp(min=-0.1)

    model = build(Floor, "W8A8->W4A8", frames=FRAMES, reference="quantized", weights="channel")
    export_model(model, FRAMES, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))

    assert "Clip" in {node.op_type for node in onnx.load(tmp_path / "out" / "htp" / "keyframe.onnx").graph.node}
    assert verify_htp(tmp_path / "out", frames=1).passed


def test_the_command_says_what_is_native_and_what_is_carried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build("plain", "W8A8->W4A4", frames=FRAMES, reference="quantized", exclude=("5",))
    export_model(model, FRAMES, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))

    assert main(["verify", str(tmp_path / "out"), "--target", "htp", "--frames", "1"]) == 0

    shown = capsys.readouterr().out
    native = "native keyframe W int8, keyframe A int8, residual W int4"
    for layer in ("0", "3"):
        assert f"{layer} W8A8->W4A4: {native}; carried residual A int8 (carries 4 bits, clipped)" in shown
    assert "HTP residual: argmax equal" in shown


def test_running_reference_updates_its_memory(tmp_path: Path) -> None:
    model = build("plain", "W8A8->W4A8", frames=FRAMES, reference="running", weights="channel")
    export_model(model, FRAMES, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))
    htp, cpu = OrtStream(tmp_path / "out", device="htp"), OrtStream(tmp_path / "out", threads=1)

    for frame in FRAMES[:3]:
        ours, expected = htp(frame.numpy()), cpu(frame.numpy())
        assert np.abs(ours - expected).max() <= 8 * (2 * np.abs(expected).max() / 255)


def test_what_it_refuses_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    model = build("plain", "W8A8->W4A{4,8}", frames=FRAMES)
    with pytest.raises(RefusedError, match=r"refuses these operators of residual\.onnx: .*Where .*static residual"):
        export_model(model, FRAMES, tmp_path / "out", encodings=(), htp=HtpConfig(compile=False))
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_tells_the_operators(tmp_path: Path) -> None:
    helper = onnx.helper
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 4])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"], name="odd")], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "odd.onnx")

    with pytest.raises(RefusedError) as caught:
        htp_session(tmp_path / "odd.onnx", 75)

    assert caught.value.nodes == (("odd", "Det"),)
