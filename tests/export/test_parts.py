"""Layers on their own: an error anywhere in a graph is found, and its place is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import build, video
from onnx import numpy_helper
from torch import Tensor, nn

from resq_plugin.errors import ExportError
from resq_plugin.export import export_model, verify
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.parts import PARTS, Cut, Part, made_up, read_parts, write_parts
from resq_plugin.export.verification import _compare

Fault = Callable[[onnx.GraphProto], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "out"
    export_model(build("residual", "W8A8->W4A3", reference="running"), video(3), folder, encodings=())
    return folder


def scaled(name: str, factor: float) -> Fault:
    def edit(graph: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))

    return edit


def one_weight(graph: onnx.GraphProto) -> None:
    """One of 8 bits, 20 steps off."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "conv2.weight")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 20 if values.flat[0] < 0 else -20
    tensor.CopyFrom(numpy_helper.from_array(values, "conv2.weight"))


def swapped(first: str, second: str) -> Fault:
    """Every reader of one memory reads the other."""
    names = {first: second, second: first}

    def edit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]

    return edit


@pytest.mark.parametrize(
    ("graph", "fault", "named"),
    [
        pytest.param("keyframe", one_weight, "conv2@0.z", id="a weight"),
        pytest.param("keyframe", scaled("conv1.x.scale", 1.02), "conv1@0.x", id="a scale"),
        pytest.param("residual", scaled("conv2.delta.0.scale", 1.05), "conv2@0.x", id="a residual scale"),
        pytest.param("residual", scaled("conv2.delta.0.high", 4 / 3), "conv2@0.x", id="the end of 3 bits in 8"),
        pytest.param("residual", swapped("conv1.z", "conv2.z"), "conv1@0.z", id="two memories"),
    ],
)
def test_a_fault_is_found_and_named(original: Path, tmp_path: Path, graph: str, fault: Fault, named: str) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "out"))
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    before = model.SerializeToString()
    fault(model.graph)
    assert model.SerializeToString() != before
    onnx.save(model, path)
    Manifest.read(folder).write(folder)  # its checksum is right

    found = verify(folder)

    assert not found.passed
    assert named in {part.name for part in found.wrong}
    assert all("conv" in part.name for part in found.wrong), "the stem, the projection and the head are right"
    assert {part.graph for part in found.wrong} == {graph}


def test_made_up_numbers_are_the_same_everywhere() -> None:
    found = made_up((2, 3), "conv1@0.x", 2.0)
    assert found.dtype == np.float32
    expected = [[-0.00089783, 0.04850668, -1.90028775], [-1.14694953, -0.77341914, 1.92440736]]
    assert np.abs(found - expected).max() < 1e-7
    assert not np.array_equal(found, made_up((2, 3), "conv1@0.z", 2.0))
    many = made_up((10**5,), "conv1@0.x", 1.0)
    assert abs(many).max() <= 1
    assert abs(np.histogram(many, 10, (-1, 1))[0] - 10**4).max() < 400  # 4 standard deviations


def test_what_is_handed_on_is_added_to_memory() -> None:
    part = Part("conv1@0.z", np.zeros(6), (2, 3), amplitude=2.0, base="conv1.z")
    memory = {"conv1.z": np.arange(6, dtype=np.float32).reshape(2, 3)}
    assert np.array_equal(part.handed_on(memory), memory["conv1.z"] + made_up((2, 3), "conv1@0.z", 2.0))


def test_parts_and_cuts_are_read_as_they_were_written(tmp_path: Path) -> None:
    parts = [Part("a@0.x", np.array([1, 2], np.int8), (1, 2), 0.5, 1.5, None, True), Part("y", np.ones(3), (3,))]
    cuts = [Cut("a@0.x", "a.x.dequantized", (("z", 0), ("y", 2)))]
    write_parts(tmp_path / PARTS, {"residual": parts}, {"residual": cuts})

    found, places = read_parts(tmp_path / PARTS)

    assert places == {"residual": cuts}
    for entry, expected in zip(found["residual"], parts, strict=True):
        assert np.array_equal(entry.expected, expected.expected)
        assert entry.expected.dtype == expected.expected.dtype
        facts = ("name", "shape", "lsb", "amplitude", "base", "is_chosen")
        assert [getattr(entry, fact) for fact in facts] == [getattr(expected, fact) for fact in facts]
    (tmp_path / PARTS).write_bytes(b"PK damaged")
    with pytest.raises(ExportError, match=r"parts\.npz is missing or damaged.*export the model again"):
        read_parts(tmp_path / PARTS)


def test_a_choice_may_fall_otherwise_in_one_pixel_of_a_hundred() -> None:
    expected = np.zeros(200, np.int64)
    part = Part("output", expected, (200,), is_chosen=True)
    for wrong, lsb in ((0, 0), (2, 0), (3, 7)):
        found = expected.copy()
        found[:wrong] = 7
        assert _compare("keyframe", part, found).lsb == lsb
    assert _compare("keyframe", Part("output", expected, (200,)), np.full(200, 7)).share == 1


def test_an_argmax_as_output_is_a_part(tmp_path: Path) -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).argmax(1, keepdim=True)

    export_model(build(Classes), video(2), tmp_path / "out", encodings=())

    found = verify(tmp_path / "out")

    assert found.passed
    outputs = [part for part in found.parts if part.name == "output"]
    assert [(part.graph, part.lsb) for part in outputs] == [("keyframe", 0), ("residual", 0)]
