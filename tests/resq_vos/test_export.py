from __future__ import annotations

from pathlib import Path

import pytest
import torch
from vos_helpers import moving_squares, tiny_stm

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from resq_vos.calibration import record_clips, step_runner
from resq_vos.export import OrtSTM, StmSpec, export_stm, pack_segment, verify_stm
from resq_vos.propagation import Propagation
from resq_vos.stm import FLOAT_LAYERS, STM

from resq_plugin import ResQConfig, convert, stream
from resq_plugin.conversion import fold_batch_norms
from resq_plugin.errors import ExportError
from resq_plugin.method import residual_layers

FRAMES, LABELS = moving_squares(9)


def calibrated_stm(precision: str, **settings: object) -> STM:
    model = tiny_stm()
    convert(model, ResQConfig.parse(precision, exclude=FLOAT_LAYERS, interval=3, **settings))
    steps = record_clips(model, (frame[None] for frame in FRAMES), LABELS[0], length=8)[0]
    fold_batch_norms(model, steps[0], step_runner(model))
    for layer in residual_layers(model).values():
        for name, quantizer in layer.activation_quantizers().items():
            quantizer.set_range(-3, 3) if name == "keyframe" else quantizer.set_range(-1, 1)
        layer.activation_norm.fill_(1.0)
    return model


@pytest.fixture(scope="module", params=["W8A8->W4A8", pytest.param("W8A8->W8A{0,4,8}", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[STM, Path]:
    model = calibrated_stm(request.param)
    folder = tmp_path_factory.mktemp("stm")
    steps = record_clips(model, (frame[None] for frame in FRAMES), LABELS[0], length=8)[0]
    spec = export_stm(model, steps, folder, capacity=3, encodings=())
    assert spec == StmSpec((32, 44), 2, 3, (2, 3), 8, 6)
    return model, folder


def test_every_layer_of_all_four_graphs_is_torchs(exported: tuple[STM, Path]) -> None:
    for found in verify_stm(exported[1]).values():
        assert {part.graph for part in found.parts} == {"keyframe", "residual"}
        assert found.passed, found.wrong


def test_every_shape_is_known(exported: tuple[STM, Path]) -> None:
    """Or large tensors could not be compared."""
    import onnx

    for path in sorted(exported[1].glob("*/*.onnx")):
        values = onnx.load(path).graph.value_info
        unknown = [v.name for v in values if any(side.dim_param for side in v.type.tensor_type.shape.dim)]
        assert values
        assert not unknown, path


@torch.no_grad()
def test_a_clip_through_onnx_runtime_is_the_stream(exported: tuple[STM, Path]) -> None:
    model, folder = exported
    ort = OrtSTM(folder)
    ours = Propagation(ort, every=5)
    with stream(model) as video:
        theirs = Propagation(model, video=video, every=5)
        for t, frame in enumerate(FRAMES):
            given = LABELS[0] if t == 0 else None
            found, expected = ours(frame[None], given), theirs(frame[None], given)
            assert (found == expected).double().mean() > 0.97
            assert float((ours.masks - theirs.masks).abs().max()) < 0.05
            if t:
                assert {part.position for part in ort.parts.values()} == {video.position}
    assert ort.state_bytes() > 0
    ours.remove(1)
    with pytest.raises(ExportError, match=r"with 2 object\(s\); got \(1, 3, 32, 44\) with 1"):
        ours(FRAMES[0][None])


def test_a_full_bank_is_told() -> None:
    model = tiny_stm()
    spec = StmSpec((32, 44), 2, 1, (2, 3), 8, 6)
    with torch.no_grad():
        tracker = Propagation(model, every=1)
        for t in range(4):
            tracker(FRAMES[t : t + 1], LABELS[0] if t == 0 else None)
    with pytest.raises(ExportError, match=r"1 remembered frames; the bank has 2 and 3.*capacity=3"):
        pack_segment(FRAMES[:1], tracker.bank, spec)


def test_a_damaged_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"stm.json is missing"):
        OrtSTM(tmp_path)


def test_steps_must_be_of_one_video() -> None:
    with pytest.raises(ExportError, match="recorded steps of one video"):
        export_stm(tiny_stm(), [], "nowhere")
