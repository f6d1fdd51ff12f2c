"""Two processes of ``torch.distributed`` measure what one measures, and train alike."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")

from mmengine.runner import Runner
from tiny_video import config, make_frames

pytestmark = pytest.mark.filterwarnings("ignore")

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tiny_video import config
from mmengine.runner import Runner
import torch.distributed
torch.distributed.init_process_group("gloo")  # MMEngine's launchers ask for a GPU
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
cfg = config(folder, out, resq__precision=sys.argv[3])
runner = Runner.from_cfg(cfg)
metrics = runner.test()
visited = [int(index) for index in runner.test_dataloader.sampler]
torch.distributed.barrier()
(out / f"rank{runner.rank}.json").write_text(json.dumps({"metrics": metrics, "visited": visited}))
"""


TRAINING = """
import hashlib, json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch.distributed
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from test_training import training_config
torch.distributed.init_process_group("gloo")
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
runner = Runner.from_cfg(training_config(folder, out, iterations=2))
runner.model = MMDistributedDataParallel(runner.model, find_unused_parameters=True)
runner.train()
state = runner.model.module.state_dict()
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
visited = [int(index) for index in runner.train_dataloader.batch_sampler.sampler]
torch.distributed.barrier()
(out / f"rank{runner.rank}.json").write_text(json.dumps({"digest": digest, "visited": visited}))
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}"])
def test_two_ranks_measure_what_one_measures(tmp_path: Path, precision: str) -> None:
    make_frames(tmp_path, "calib", 4)
    make_frames(tmp_path, "val", 7)
    for name in ("00102", "00106"):  # labels at positions that leave intervals of different lengths
        (tmp_path / "valannot" / f"0016E5_{name}.png").unlink()
    expected = Runner.from_cfg(config(tmp_path, tmp_path / "one", resq__precision=precision)).test()
    found = run_ranks(SCRIPT, tmp_path, precision)
    assert found[0]["metrics"] == found[1]["metrics"]
    exact = {name: value for name, value in expected.items() if not name.startswith("resq/")}
    assert {name: found[0]["metrics"][name] for name in exact} == pytest.approx(exact, nan_ok=True)
    assert found[0]["metrics"]["resq/gbops_per_frame"] == pytest.approx(expected["resq/gbops_per_frame"], rel=1e-9)
    assert found[0]["visited"]
    assert found[1]["visited"]


@pytest.mark.slow
def test_two_ranks_train_one_model(tmp_path: Path) -> None:
    make_frames(tmp_path, "calib", 4)
    make_frames(tmp_path, "train", 8)
    make_frames(tmp_path, "val", 3)
    found = run_ranks(TRAINING, tmp_path)
    assert found[0]["digest"] == found[1]["digest"]
    assert set(found[0]["visited"]) != set(found[1]["visited"])


def run_ranks(script: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a script in two processes and return what each wrote."""
    here = Path(__file__).resolve().parent
    environment = {
        **os.environ,
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
    }
    out = folder / "two"
    out.mkdir()
    command = [sys.executable, "-c", script, str(folder), str(out), *arguments]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
