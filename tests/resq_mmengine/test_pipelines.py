"""What fails in a pipeline is one line that names the step, the data and the file, through every door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from resq_mmengine.calibration import KEY, ClipLoader
from resq_mmengine.pipelines import build_dataset, described
from tiny_video import config, dataset, make_frames

from resq_plugin.cli import main
from resq_plugin.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")

LOAD: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
PACK = {"type": "PackSegInputs"}
FAILING = {"type": "FailsOnFrame", "frame": 2}


@TRANSFORMS.register_module()
class FailsOnFrame:
    """As a step of a user's own."""

    def __init__(self, frame: int) -> None:
        self.frame = frame

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("frame_index", data.get("img_id")) == self.frame:
            raise ValueError("no\nsuch luck")
        return data


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    make_frames(folder, "calib", 4)
    make_frames(folder, "val", 4)
    torch.manual_seed(0)
    torch.save({"state_dict": Runner.from_cfg(config(folder, folder)).model.state_dict()}, folder / "float.pth")
    return folder


def error_of(case: Path, command: list[str], capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """What a command says with that config."""
    found = config(case, case, **changes)
    found.dump(case / "config.py")
    capsys.readouterr()
    assert main([command[0], str(case / "config.py"), "--checkpoint", str(case / "float.pth"), *command[1:]]) == 2
    *_, error = capsys.readouterr().err.strip().splitlines()
    return error


def pipeline(*steps: dict[str, Any], split: str = "val", case: Path) -> dict[str, Any]:
    return dataset(case, split, pipeline=[*LOAD, *steps, PACK])


@pytest.mark.parametrize("workers", [0, 1])
def test_eval_names_step_data_and_file(case: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(
        *(case, ["eval", "--schemes", "float"], capsys),
        test_dataloader__dataset=pipeline(FAILING, case=case),
        test_dataloader__num_workers=workers,
    )
    file = case / "val" / "0016E5_00104.png"
    assert error == (
        "resq eval: error: FailsOnFrame in the pipeline of CamVidSequence fails on frame 2 of clip val/0016E5_00100 "
        f"({file}): ValueError: no such luck; change the step in that pipeline of the config, or the frame."
    )


def test_a_pipeline_that_packs_nothing(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_test = error_of(
        case, ["eval", "--schemes", "float"], capsys, test_dataloader__dataset=dataset(case, "val", pipeline=LOAD)
    )
    assert "the pipeline of test_dataloader.dataset makes no 'inputs' for the model; load images first" in of_test
    with DefaultScope.overwrite_default_scope("mmseg"):
        loader = ClipLoader(build_dataset(dataset(case, "calib", pipeline=LOAD), KEY), torch.nn.Identity(), 2)
    with pytest.raises(ConfigError, match=r"pipeline of resq.calibration.dataset makes no 'inputs'.*'PackSegInputs'"):
        loader[0]


def test_calibration_data_that_cannot_be_built_or_made(case: Path) -> None:
    with pytest.raises(ConfigError, match=r"^resq.calibration.dataset \(type='Nope'\) cannot be built: KeyError: "):
        build_dataset({"type": "Nope"}, KEY)

    class OfSomebodyElse:
        def __len__(self) -> int:
            return 2

        def get_data_info(self, index: int) -> dict[str, Any]:
            return {"clip_id": "a", "frame_index": index}

        def __getitem__(self, index: int) -> Any:
            return {}["lost"]

    with pytest.raises(ConfigError, match=r"^frame 0 of resq.calibration.dataset \(OfSomebodyElse\) .*: 'lost'"):
        ClipLoader(OfSomebodyElse(), torch.nn.Identity(), 2)[0]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            FAILING,
            "FailsOnFrame in the pipeline of the config's test data fails on frame 2 ({file}): ValueError: no such",
        ),
        ({"type": "Nope"}, "the step Nope in the pipeline of the config's test data cannot be built: KeyError: "),
    ],
)
def test_compare_names_step_and_file(
    case: Path, tmp_path: Path, step: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--video", str(case / "val"), "--out", str(tmp_path / "out"), "--precision", "W8A8"]
    command += ["--calibrate", str(case / "calib")]
    error = error_of(case, command, capsys, test_dataloader__dataset=pipeline(step, case=case))
    assert error.startswith("resq compare: error: " + message.format(file=case / "calib" / "0016E5_00104.png"))


def test_compare_names_a_frame_of_another_size(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "frames"
    make_frames(tmp_path, "frames", 16)
    odd = sorted(folder.glob("*.png"))[5]
    Image.open(odd).resize((60, 20)).save(odd)
    command = ["compare", "--video", str(folder), "--out", str(tmp_path / "out"), "--precision", "W8A8"]
    error = error_of(case, command, capsys)
    assert error.startswith(f"resq compare: error: frame 5 ({odd}) is 20 × 60 as the network gets it, others are ")
    assert error.endswith("all frames of a video need one size: --size H W.")


def test_errors_in_one_line() -> None:
    lower = type("error", (Exception,), {"__module__": "cv2"})
    assert described(lower("a\n  b.")) == "cv2.error: a b"
    assert described(ValueError()) == "ValueError"
