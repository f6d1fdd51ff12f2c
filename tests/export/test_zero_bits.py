"""Residuals of 0 bits: z_t = z_k, and the graph keeps the frame and all memory as its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import build, play, video

from resq_plugin.errors import ExportError
from resq_plugin.export import HtpConfig, OrtStream, export_model, verify, verify_htp

CASES = {
    "all": ("W8A8->W8A0", {}),
    "a pool of 0": ("W8A8->W4A{0}", {}),
    "the first layer": ("W8A8->W4A4", {"0": "W8A8->W8A0"}),
    "the middle layer": ("W8A8->W4A4", {"3": "W8A8->W8A0"}),
    "the last layer": ("W8A8->W4A4", {"5": "W8A8->W8A0"}),
    "all but the last": ("W8A8->W4A0", {"5": "W8A8->W8A4"}),
    "all but the first, dynamic": ("W8A8->W4A0", {"0": "W8A8->W4A{0,4,8}"}),
}
IDLE = {"all", "a pool of 0", "the last layer", "all but the first, dynamic"}
"""Cases in which a residual frame's output needs no layer."""


@pytest.mark.parametrize("case", list(CASES))
def test_the_folder_plays_what_torch_plays(case: str, reference: str, tmp_path: Path) -> None:
    precision, overrides = CASES[case]
    model, frames = build("plain", precision, reference=reference, overrides=overrides), video(7)
    manifest = export_model(model, frames, tmp_path / "out")

    names = [cache.name for cache in manifest.caches]
    for graph in ("residual.onnx", "encodings/residual.onnx"):
        inputs = onnx.load(tmp_path / "out" / graph).graph.input
        assert [value.name for value in inputs] == ["frame", *names]
    with OrtStream(tmp_path / "out", threads=1) as player:
        found = [player(frame.numpy()) for frame in frames]
    for ours, theirs in zip(found, play(model, frames), strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * float(theirs.abs().max())
    if case in IDLE:
        assert np.array_equal(found[1], found[0])
    assert np.array_equal(found[3], found[0]) is False
    assert verify(tmp_path / "out").passed
    assert verify(tmp_path / "out").agreement == 100


def test_a_network_with_branches(tmp_path: Path) -> None:
    """One branch of a skip connection holds still."""
    model = build("residual", "W8A8->W4A4", overrides={"conv*": "W8A8->W8A0"})
    export_model(model, video(4), tmp_path / "out", encodings=())
    found = verify(tmp_path / "out")
    assert found.passed
    residual = {part.name for part in found.parts if part.graph == "residual"}
    assert {"stem.0@0.z", "downsample.0@0.z", "head@0.z"} <= residual
    assert not {name for name in residual if name.startswith("conv")}
    nodes = onnx.load(tmp_path / "out" / "residual.onnx").graph.node
    assert sum(node.op_type == "Conv" for node in nodes) == 2  # no MACs of the others


@pytest.mark.filterwarnings("ignore")  # of onnxruntime.quantization
@pytest.mark.parametrize("case", list(CASES))
def test_on_the_htp_it_runs_or_is_refused_before_it_is_compiled(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="the extra htp is not installed")
    precision, overrides = CASES[case]
    model, frames, htp = build("plain", precision, overrides=overrides), video(10), HtpConfig(compile=False)
    if case in IDLE:
        monkeypatch.setattr("resq_plugin.export.folder.build_htp", lambda *_: pytest.fail("refused before"))
        with pytest.raises(
            ExportError,
            match=r"residual frames would repeat the keyframe's output.*; give residuals bits, e\.g\. 'W8A8->W4A8'",
        ):
            export_model(model, frames, tmp_path / "out", encodings=(), htp=htp)
        assert not list(tmp_path.iterdir())
        return
    export_model(model, frames, tmp_path / "out", encodings=(), htp=htp)
    assert verify_htp(tmp_path / "out").passed
    cpu, device = OrtStream(tmp_path / "out", threads=1), OrtStream(tmp_path / "out", device="htp")
    for frame in frames[:3]:
        ours, expected = device(frame.numpy()), cpu(frame.numpy())
        assert np.abs(ours - expected).max() <= 4 * 2 * np.abs(expected).max() / 255
