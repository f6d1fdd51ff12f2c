"""The package as users install it: what the wheel holds, where imports come from, what an import loads."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"resq_plugin", "resq_aimet", "resq_brevitas", "resq_mmengine", "resq_mmseg", "resq_mmpose", "resq_vos"}


def run_python(code: str, folder: Path, **environment: str) -> str:
    """Run code in a folder other than the checkout, which `python -c` would import from."""
    command, env = [sys.executable, "-c", code], {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_packages_and_their_data_and_claims_no_common_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == PACKAGES
    for name in (
        "demo/demonet.pth",
        "demo/demonet_w4a4_w3a3.pth",
        "report/report.html.j2",
        "py.typed",
        "backends/torch_backend.py",
    ):
        assert f"resq_plugin/{name}" in names
    assert "resq_mmengine/configs/_base_/resq_w8a8_w4a4.py" in names
    assert any(name.startswith("resq_mmseg/configs/camvid/") for name in names)
    assert wheel.stat().st_size < 2e6


def test_the_wheel_runs_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import torch, resq_plugin, resq_mmengine;"
        "net = resq_plugin.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), 'W8A8->W4A4');"
        "resq_plugin.calibrate(net, [torch.randn(2, 3, 8, 8)]);"
        "from resq_plugin.demo import load_demo_net; load_demo_net();"
        "print(resq_plugin.__file__, resq_mmengine.__file__)"
    )
    found = run_python(code, tmp_path, PYTHONPATH=str(tmp_path)).split()
    assert all(Path(path).is_relative_to(tmp_path) for path in found)


def test_the_editable_install_points_here(tmp_path: Path) -> None:
    code = "import resq_plugin, resq_mmengine; print(resq_plugin.__file__, resq_mmengine.__file__)"
    found = run_python(code, tmp_path).split()
    assert found == [str(ROOT / "resq_plugin/__init__.py"), str(ROOT / "integrations/resq_mmengine/__init__.py")]


def test_importing_the_core_loads_no_toolkit_and_no_plotting(tmp_path: Path) -> None:
    heavy = ("mmengine", "mmcv", "mmseg", "mmpose", "mmdet", "matplotlib", "av", "jinja2", "onnx", "aimet_torch")
    code = f"import sys, resq_plugin; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_python(code, tmp_path) == "[]"
