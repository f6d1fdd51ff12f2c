"""Two processes train as one process with the doubled batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import cross_entropy, labelled_clips, make_net

from resq_plugin.training import TrainConfig, train, unroll

START = """
import hashlib, json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, out = dist.get_rank(), Path(sys.argv[1])
torch.set_num_threads(1)
def write(values):
    (out / f"rank{rank}.json").write_text(json.dumps(values))
    dist.barrier()
    dist.destroy_process_group()
"""

DDP = (
    START
    + """
from helpers import video
from resq_plugin import calibrate
from test_distributed import clips, config, tiny
from tiny_training import cross_entropy
from resq_plugin.training import train
model = tiny(sys.argv[2])
if rank:  # other ranges here: the first process's count
    calibrate(model, [[frame.double() for frame in video(3, (2, 3, 12, 16), seed=99, motion=1.0)]])
seen = []
class Watched(list):
    def __getitem__(self, index):
        seen.append(index)
        return list.__getitem__(self, index)
losses = train(model, Watched(clips()), cross_entropy, config(2, int(sys.argv[3])), folder=out / "run").losses
digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()
write({"losses": losses, "seen": seen, "digest": digest, "weight": float(model[0].weight.detach().sum())})
"""
)

FSDP = (
    START
    + """
from torch.distributed.fsdp import fully_shard
from test_distributed import interval_loss, tiny
from resq_plugin.errors import ConfigError
from resq_plugin.training import TrainConfig, train
model = tiny(sys.argv[2])
mesh = torch.distributed.init_device_mesh("cpu", (2,))
scales = {parameter for parameter in model.parameters() if parameter.dim() == 0}  # which FSDP2 cannot shard
fully_shard(model, mesh=mesh, ignored_params=scales)
refused = []
for attempt in (lambda: interval_loss(model), lambda: train(model, [], None, TrainConfig())):
    try:
        attempt()
    except ConfigError as error:
        refused.append(str(error))
write({"refused": refused})
"""
)


def tiny(precision: str) -> torch.nn.Module:
    """In double precision: what sums in another order must not round to another integer."""
    return make_net(precision, dtype=torch.float64, weights="channel")


def clips() -> list[Any]:
    return [(frames.double(), labels) for frames, labels in labelled_clips()]


def config(batch: int, accumulate: int = 1) -> TrainConfig:
    return TrainConfig(steps=5, batch=batch, accumulate=accumulate, lr=1e-3, intervals=(1, 3), seed=4, save_every=2)


def interval_loss(model: torch.nn.Module) -> torch.Tensor:
    frames, labels = zip(*clips()[:4], strict=True)
    model.train()
    outputs = unroll(model, list(torch.stack(frames, 1)))
    return sum(cross_entropy(y, t) for y, t in zip(outputs, torch.stack(labels, 1), strict=True))


@pytest.mark.parametrize(
    ("precision", "accumulate"),
    [
        ("W4A4->W3A3", 1),
        pytest.param("W4A4->W3A{0,3}", 2, marks=pytest.mark.slow),
        pytest.param("W4A4", 1, marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one_with_the_doubled_batch(precision: str, accumulate: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected = train(tiny(precision), clips(), cross_entropy, config(4)).losses
    first, second = run_ranks(DDP, tmp_path, precision, str(accumulate))
    assert first["losses"] == pytest.approx(expected, abs=1e-4)
    assert second["losses"] == first["losses"]
    assert first["digest"] == second["digest"]
    assert not set(first["seen"][:2]) & set(second["seen"][:2])
    assert torch.load(tmp_path / "run" / "training.pt", weights_only=True)["step"] == 5


@pytest.mark.slow
def test_sharded_parameters_are_refused_with_the_reason(tmp_path: Path) -> None:
    for found in run_ranks(FSDP, tmp_path, "W4A4->W3A3"):
        assert len(found["refused"]) == 2
        assert all("sharded parameters (fully_shard). FSDP2 puts other tensors" in said for said in found["refused"])


def run_ranks(script: str, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a script in two processes and return what each wrote."""
    here = Path(__file__).resolve().parent
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    environment = {
        **os.environ,
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
    }
    command = [sys.executable, "-c", script, str(out), *arguments]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
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
