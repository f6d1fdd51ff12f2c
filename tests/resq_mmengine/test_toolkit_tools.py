"""The toolkits' own ``tools/test.py``, unchanged, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.runner import Runner
from tiny_video import config, make_frames

pytestmark = pytest.mark.filterwarnings("ignore")


def test_mmseg_tests_a_config_with_the_fragment(tmp_path: Path) -> None:
    make_frames(tmp_path, "calib", 3)
    make_frames(tmp_path, "val", 3)
    torch.manual_seed(0)
    cfg = config(tmp_path, tmp_path / "here", log_level="INFO", custom_imports={"imports": ["resq_mmengine"]})
    runner = Runner.from_cfg(cfg)
    torch.save({"state_dict": runner.model.state_dict(), "meta": {}}, tmp_path / "float.pth")
    runner.load_checkpoint(str(tmp_path / "float.pth"))
    cfg.resq.interval = 2
    cfg.dump(tmp_path / "config.py")
    package = find_spec("mmseg")
    assert package is not None
    assert package.origin is not None
    tool = Path(package.origin).parent / ".mim" / "tools" / "test.py"
    command = [sys.executable, str(tool), str(tmp_path / "config.py"), str(tmp_path / "float.pth")]
    options = ["--work-dir", str(tmp_path / "there"), "--cfg-options", "resq.interval=3"]
    done = subprocess.run(
        command + options, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    cfg.resq.interval = 3
    cfg.load_from, cfg.log_level = str(tmp_path / "float.pth"), "ERROR"
    expected = Runner.from_cfg(cfg).test()
    assert f"seg/mIoU_t2: {expected['seg/mIoU_t2']:.4f}" in printed
    assert f"resq/gbops_per_frame: {expected['resq/gbops_per_frame']:.4f}" in printed
    assert (tmp_path / "there" / "resq_calibrated.pth").exists()
