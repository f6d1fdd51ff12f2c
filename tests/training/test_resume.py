"""Killed at any moment and resumed: the same curve as uninterrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import cross_entropy, labelled_clips, make_net

from resq_plugin.training import Camera, StillClips, TrainConfig, train

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from test_resume import run, settings
folder, moment = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "writing":  # half a checkpoint is on disk
    save, count = torch.save, []
    def torn(values, path, *args, **kwargs):
        count.append(1)
        if len(count) == 3:
            Path(path).write_bytes(b"half a checkpoint")
            die()
        save(values, path, *args, **kwargs)
    torch.save = torn
    run(folder, settings())
else:
    run(folder, settings(), on_step=lambda step, values: step == int(moment) and die())
"""


def settings(**changes: Any) -> TrainConfig:
    values = {"steps": 9, "batch": 3, "save_every": 2, "ema": 0.9, "warmup": 2, "intervals": (1, 2, 3), "lr": 2e-3}
    return TrainConfig(**{**values, **changes})


def run(folder: Path | None, config: TrainConfig, **options: Any) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Train on stills, whose clips are drawn at random, and return the curve, the weights and the steps it took."""
    torch.manual_seed(7)
    model = make_net("W4A4->W3A{0,3}", weights="channel")
    images, labels = zip(
        *[
            (frames[0], targets[0].repeat_interleave(2, 0).repeat_interleave(2, 1))
            for frames, targets in labelled_clips(4)
        ],
        strict=True,
    )
    clips = StillClips(images, labels, camera=Camera(size=(12, 16), shift=1.0, ignore=-100), seed=3)

    def loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(scores, target[:, ::2, ::2])

    result = train(model, clips, loss, config, folder=folder, **options)
    return result.losses, {name: value.clone() for name, value in model.state_dict().items()}, result.steps


@pytest.mark.parametrize("moment", ["1", "3", "6", "writing"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(moment: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected, weights, _ = run(None, settings())
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    dead = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), moment],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    found, resumed, steps = run(tmp_path, settings())
    assert steps == 9 - {"1": 0, "3": 2, "6": 6, "writing": 4}[moment]
    assert found == expected
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    losses, weights, steps = run(tmp_path, settings())
    again, same, none = run(tmp_path, settings())
    assert (steps, none) == (9, 0)
    assert again == losses
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    assert json.loads(json.dumps(again)) == again
