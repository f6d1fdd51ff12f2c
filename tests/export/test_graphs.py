"""Two graphs against torch on the same memory, for every kind of small net, reference and kind of precision."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import build, video
from torch import nn

from resq_plugin import stream
from resq_plugin.errors import ExportError
from resq_plugin.export import OrtStream, export_model, verify
from resq_plugin.export.caches import plan_caches
from resq_plugin.export.difference import TensorDifference, difference
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.numbers import read_numbers
from resq_plugin.export.verification import Verification
from resq_plugin.method.layers import residual_layers

LSB = 1e-3
"""Of an 8-bit grid. Small nets agree to float rounding; a wrong step anywhere is a whole LSB."""

PART_LSB = 1.0
"""Of an integer on its own grid, which may fall on either side of a rounding."""

PRECISIONS = {"float": "W8A8->W4A4", "quantized": "W4A4->W3A3", "running": "W8A8->W4A{0,4,8}"}


def caches_of(net: str, **settings: str) -> dict[str, tuple[str, ...]]:
    model, frame = build(net, **settings), video()[0]
    plan = plan_caches(model, frame, read_numbers(model, frame), settings.get("reference", "float"))
    return {cache.name: cache.layers for cache in plan.caches}


def test_each_graph_equals_torch_and_so_does_the_stream(tmp_path: Path, zoo: str, reference: str) -> None:
    model = build(zoo, PRECISIONS[reference], reference=reference)

    export_model(model, video(10), tmp_path / "out", encodings=())
    found = verify(tmp_path / "out")

    assert found.passed
    assert found.frames == 10
    assert found.agreement == 100
    assert {tensor.graph for tensor in found.tensors} == {"keyframe", "residual"}
    assert max(found.worst(graph) for graph in ("keyframe", "residual")) < LSB
    assert max(found.worst_part(graph) for graph in ("keyframe", "residual")) <= PART_LSB
    graphs = {part.graph for part in found.parts}
    assert graphs == {"keyframe", "residual"}


def test_every_layer_call_and_every_output_is_a_part(tmp_path: Path) -> None:
    """Of a net that calls ``head`` twice in a frame; the outputs are what the head returns twice."""
    model = build("pyramid", "W8A8->W4A4", reference="running")
    export_model(model, video(3), tmp_path / "out", encodings=())

    found = verify(tmp_path / "out").parts

    for graph, prefix in (("keyframe", ""), ("residual", "new.")):
        names = {part.name for part in found if part.graph == graph}
        calls = [f"{name}@0" for name in residual_layers(model)] + ["head@1"]
        assert {f"{call}.{side}" for call in calls for side in "xz"} <= names
        manifest = Manifest.read(tmp_path / "out")
        assert {f"{prefix}{cache.name}" for cache in manifest.caches} <= names


def test_differences_are_counted_in_lsb() -> None:
    expected = np.array([255.0, 0, 0, 0], np.float32)  # one LSB of Eq. 6: 2 * 255 / 255
    found = difference("residual", "output", [(expected + np.array([0, 1.5, 0.8, 3], np.float32), expected)])

    assert (found.lsb, found.share, found.beyond) == (1.5, 0.5, 0.25)
    assert difference("residual", "x", [(np.array([3, -2]), np.array([3, 0]))]).lsb == 2


@pytest.mark.parametrize(
    ("part", "share", "whole", "passed"),
    [(1.0, 0.01, 9.0, True), (1.1, 0.01, 0.0, False), (1.0, 0.02, 0.0, False)],
)
def test_parts_decide(part: float, share: float, whole: float, passed: bool) -> None:
    """Roundings that flip through the whole of a deep graph are no error."""
    parts, tensors = (TensorDifference("residual", "z", lsb, share, share) for lsb in (part, whole))
    found = Verification((parts,), (tensors,), 50.0, 10)
    assert found.passed is passed
    assert (found.worst_part("residual"), found.worst("residual"), found.worst("keyframe")) == (part, whole, 0)


def test_frame_quantization_has_one_graph_and_no_memory(tmp_path: Path) -> None:
    manifest = export_model(build("residual", "W8A8"), video(2), tmp_path / "out")

    assert set(manifest.graphs) == {"keyframe"}
    assert manifest.caches == ()
    assert not (tmp_path / "out" / "residual.onnx").exists()
    assert verify(tmp_path / "out").worst("keyframe") < LSB


def test_layers_that_read_one_tensor_share_its_cache() -> None:
    shared = caches_of("residual")
    # conv1 and the projection read the stem's output; the stem reads the frame, which nobody writes out.
    assert shared["conv1.x"] == ("conv1 (x)", "downsample.0 (x)")
    assert shared["frame.x"] == ("stem.0 (x)",)
    assert len(shared) == 9

    own = caches_of("residual", reference="running")
    assert own["downsample.0.x"] == ("downsample.0 (x)",)
    assert len(own) == 10


def test_an_input_that_is_another_layers_output_shares_its_z() -> None:
    class Chain(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))

    model, frame = build(Chain), video()[0]
    plan = plan_caches(model, frame, read_numbers(model, frame), "float")

    assert plan.x == {("0", 0): "frame.x", ("1", 0): "0.z"}
    assert [cache.name for cache in plan.caches] == ["frame.x", "0.z", "1.z"]


def test_layers_on_different_grids_do_not_share_a_quantized_cache(tmp_path: Path) -> None:
    model = build("residual", "W8A8->W4A4", reference="quantized")
    model.conv1.keyframe_quantizer.set_range(-0.7, 0.7)

    manifest = export_model(model, video(2), tmp_path / "out", encodings=("1.0.0",))

    caches = {cache.name: cache for cache in manifest.caches}
    assert caches["conv1.x"].layers == ("conv1 (x)",)
    assert caches["downsample.0.x"].layers == ("downsample.0 (x)",)
    assert caches["conv1.x"].scale == pytest.approx(1.4 / 255)
    assert verify(tmp_path / "out").worst("residual") < LSB
    graph = onnx.load(tmp_path / "out" / "encodings" / "keyframe.onnx").graph
    encodings = json.loads((tmp_path / "out" / "encodings" / "keyframe.1.0.0.encodings").read_text())
    names = {e["name"]: e["scale"][0] for e in encodings["activation_encodings"]}
    inputs = {n.input[1]: n.input[0] for n in graph.node if n.op_type == "Conv"}
    assert names[inputs["conv1.weight"]] == pytest.approx(1.4 / 255)
    assert names[inputs["downsample.0.weight"]] == pytest.approx(caches["downsample.0.x"].scale)


def test_quantized_memory_is_lossless_in_8_bits(tmp_path: Path) -> None:
    model, frames = build("plain", "W8A8->W4A4", reference="quantized"), video(2)
    export_model(model, frames, tmp_path / "out", encodings=())
    player = OrtStream(tmp_path / "out", threads=1)

    player(frames[0].numpy())
    with torch.no_grad(), stream(model) as played:
        played(frames[0])
        expected = played._state.caches["0", 0].x

    held, memory = {cache.name: cache for cache in player.caches}, player.memory_arrays()
    assert {held[f"{layer}.x"].dtype for layer in (0, 3, 5)} == {"int8"}
    assert np.array_equal(memory["0.x"], expected.numpy())  # the first layer sees the very same frame
    assert held["0.x"].bytes == 2 * 3 * 12 * 16
    assert player.state_bytes() == sum(cache.bytes for cache in player.caches)


def test_integers_clip_and_say_so(tmp_path: Path) -> None:
    manifest = export_model(build("plain", "W4A4->W3A3"), video(2), tmp_path / "out", encodings=())

    assert manifest.layers[0].precision == "W4A4->W3A3"
    assert manifest.layers[0].containers == {
        "keyframe": ("W int4", "A int8 (carries 4 bits, clipped)"),
        "residual": ("W int4 (carries 3 bits, clipped)", "A int8 (carries 3 bits, clipped)"),
    }
    graph = onnx.load(tmp_path / "out" / "residual.onnx").graph
    assert Counter(node.op_type for node in graph.node)["Clip"] == 3
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(int) for t in graph.initializer}
    types = {t.name: t.data_type for t in graph.initializer}
    for layer in (0, 3, 5):
        assert types[f"{layer}.residual.weight"] == onnx.TensorProto.INT4
        assert -4 <= weights[f"{layer}.residual.weight"].min() <= weights[f"{layer}.residual.weight"].max() <= 3


def test_shapes_are_static_and_named(tmp_path: Path) -> None:
    export_model(build("unet", "W8A8->W4A8"), video(2), tmp_path / "out")

    for path in sorted((tmp_path / "out").rglob("*.onnx")):
        graph = onnx.load(path).graph
        for value in (*graph.input, *graph.output):
            assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), (path, value.name)
        assert not {"Shape", "resq"} & {node.op_type for node in graph.node}
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.graphs["residual"].inputs[0].name == "frame"
    assert [t.name for t in manifest.graphs["residual"].inputs[1:]] == [cache.name for cache in manifest.caches]


def test_per_channel_scales_survive(tmp_path: Path) -> None:
    export_model(build("tokens", "W8A8->W4A4", weights="channel"), video(2), tmp_path / "out", encodings=())

    assert verify(tmp_path / "out").worst("residual") < LSB


def test_grouped_transposed_convolution_by_channel_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"layer up\.conv .*weights='tensor'.*exclude=\('up\.conv',\)"):
        export_model(build("unet", weights="channel"), video(2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
