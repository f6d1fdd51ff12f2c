"""Export: Brevitas' own formats for the two graphs, an independent count of bit operations, and the core's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import max_lsb, play, step_of, video
from onnx import numpy_helper
from resq_brevitas.export import export_graphs
from torch import Tensor, nn

from resq_plugin import measure_cost
from resq_plugin.errors import ExportError
from resq_plugin.method.layers import residual_layers

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's and Brevitas' exporters
Make = Callable[..., nn.Module]


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_clip(files: dict[str, Path], frames: list[Tensor]) -> list[Tensor]:
    """Play one interval through ONNX Runtime."""
    keyframe, residual = session(files["keyframe"]), session(files["residual"])
    first = keyframe.run(None, {"frame": frames[0].numpy()})
    names = [entry.name for entry in residual.get_inputs()]
    held = dict(zip([entry.name for entry in keyframe.get_outputs()], first, strict=True))
    outputs = [first[0]]
    for frame in frames[1:]:
        z, *new = residual.run(None, {name: frame.numpy() if name == "frame" else held[name] for name in names})
        outputs.append(z)
        held.update(zip([entry.name.removesuffix(".new") for entry in residual.get_outputs()[1:]], new, strict=True))
    return [torch.from_numpy(z) for z in outputs]


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize(("name", "reference"), [("residual", "float"), ("unet", "running")])
def test_qcdq_graphs_compute_what_the_model_does(
    name: str, reference: str, dynamo: bool, calibrated: Make, tmp_path: Path
) -> None:
    weights = "tensor" if name == "unet" else "channel"
    model, frames = calibrated(name, weights=weights, reference=reference), video(3)
    files = export_graphs(model, frames[0], tmp_path, dynamo=dynamo)
    for found, expected in zip(run_clip(files, frames), play(model, frames), strict=True):
        assert max_lsb(found, expected, step_of(expected)) <= 2
    ops = {node.op_type for node in onnx.load(files["residual"]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Clip"} <= ops


def test_qonnx_has_the_true_bit_widths(calibrated: Make, tmp_path: Path) -> None:
    model, frames = calibrated("residual", "W8A6->W4A3"), video(1)
    files = export_graphs(model, frames[0], tmp_path, format="qonnx", dynamo=False)
    for graph, widths in (("keyframe", [8, 6]), ("residual", [4, 3])):
        found = onnx.load(files[graph]).graph
        values = {entry.name: numpy_helper.to_array(entry) for entry in found.initializer}
        values |= {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t)
            for node in found.node
            if node.op_type == "Constant"
        }
        quantizers = [node for node in found.node if node.op_type == "Quant"]
        assert sorted(int(values[node.input[3]]) for node in quantizers) == sorted(widths * 5)
        scales = {float(scale) for node in quantizers for scale in np.atleast_1d(values[node.input[1]]).ravel()}
        layers = residual_layers(model).values()
        side = "keyframe" if graph == "keyframe" else "residual.0"
        assert scales == {
            float(value)
            for layer in layers
            for value in (
                layer.activation_quantizers()[side].scale.detach(),
                layer.weight_scale_of(side.split(".", maxsplit=1)[0]).flatten()[0],
            )
        }


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_qonnx_counts_the_same_bit_operations(name: str, calibrated: Make, tmp_path: Path) -> None:
    from qonnx.util.inference_cost import inference_cost

    model, frame = calibrated(name, "W8A6->W4A3"), video(1, (1, 3, 12, 16))[0]
    files = export_graphs(model, frame, tmp_path, format="qonnx", dynamo=False)
    cost = measure_cost(model, (1, 3, 12, 16))
    for graph, bops in (("keyframe", cost.bops_keyframe), ("residual", cost.bops_residual)):
        found = inference_cost(str(files[graph]), discount_sparsity=False)
        assert found["total_cost"]["total_bops"] == bops
        assert found["total_cost"]["total_macs"] == cost.macs


@pytest.mark.parametrize("format", ["qcdq", "qonnx"])
@pytest.mark.parametrize(
    ("precision", "overrides"), [("W8A8->W8A0", {}), ("W8A8->W4A4", {"3": "W8A8->W8A0"})], ids=["all", "one layer"]
)
def test_residuals_of_0_bits_leave_every_input_in_the_graph(
    precision: str, overrides: dict[str, str], format: str, calibrated: Make, tmp_path: Path
) -> None:
    model, frames = calibrated("plain", precision, overrides=overrides), video(3)
    files = export_graphs(model, frames[0], tmp_path, format=format, dynamo=False)
    graph = onnx.load(files["residual"]).graph
    memory = [f"{layer}.0.{part}" for layer in "035" for part in "xz"]
    constants = {tensor.name for tensor in graph.initializer}
    assert [value.name for value in graph.input if value.name not in constants] == ["frame", *memory]
    if format == "qcdq":
        for found, expected in zip(run_clip(files, frames), play(model, frames), strict=True):
            assert max_lsb(found, expected, step_of(expected)) <= 2


def test_a_model_without_residuals_has_one_graph(calibrated: Make, tmp_path: Path) -> None:
    model, frames = calibrated("residual", "W8A8"), video(2)
    files = export_graphs(model, frames[0], tmp_path, dynamo=False)
    assert list(files) == ["keyframe"]
    (found,) = session(files["keyframe"]).run(None, {"frame": frames[1].numpy()})
    with torch.no_grad():
        expected = model(frames[1])
    assert max_lsb(torch.from_numpy(found), expected, step_of(expected)) <= 2


def test_what_brevitas_cannot_write_names_who_can(calibrated: Make, tmp_path: Path) -> None:
    model = calibrated("residual", "W8A8->W4A{0,4,8}")
    with pytest.raises(ExportError, match=r"dynamic pool W4A\{0,4,8\}.*write resq_plugin\.export\.export_model"):
        export_graphs(model, video(1)[0], tmp_path)
    with pytest.raises(ExportError, match=r"layer up\.conv is a grouped transposed.*weights='tensor'.*format='qonnx'"):
        export_graphs(calibrated("unet", weights="channel"), video(1)[0], tmp_path)
    with pytest.raises(ExportError, match=r"Did you mean 'qonnx'"):
        export_graphs(model, video(1)[0], tmp_path, format="onnx")


@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}"])
def test_the_cores_folder_plays_and_verifies(precision: str, calibrated: Make, tmp_path: Path) -> None:
    from resq_plugin.export import OrtStream, export_model, verify

    model, frames = calibrated("residual", precision), video(4, (1, 3, 12, 16))
    export_model(model, frames, tmp_path / "out")
    with OrtStream(tmp_path / "out", threads=1) as player:
        for frame, z in zip(frames, play(model, frames), strict=True):
            assert max_lsb(torch.from_numpy(player(frame.numpy())), z, step_of(z)) <= 2
    assert verify(tmp_path / "out").agreement == 100
