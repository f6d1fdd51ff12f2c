"""The hook in MMEngine's own Runner, on a made-up CamVid folder."""

from __future__ import annotations

import copy
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.config import DictAction
from mmengine.dataset import pseudo_collate
from mmengine.model.utils import _BatchNormXd
from mmengine.runner import Runner, load_checkpoint
from resq_mmengine.calibration import is_calibrated
from resq_mmengine.hook import CALIBRATED, ResQHook
from resq_mmengine.session import VideoSession
from tiny_video import config, dataset, make_frames

from resq_plugin import ResQConfig, convert, float_state_dict, stream
from resq_plugin.backends.batch_norm import FoldedNorm
from resq_plugin.errors import CalibrationError, CheckpointError, ConfigError
from resq_plugin.evaluation.metrics import MeanIoU
from resq_plugin.evaluation.protocol import evaluate
from resq_plugin.method.layers import dense_execution, residual_layers

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    make_frames(folder, "calib", 6)
    make_frames(folder, "val", 5)
    return folder


@pytest.fixture(scope="module")
def weights(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint with batch norms that do something."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    runner = Runner.from_cfg(config(videos, folder, resq=None))
    for module in runner.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    torch.save({"state_dict": runner.model.state_dict(), "meta": {}}, folder / "float.pth")
    return folder / "float.pth"


def run(videos: Path, folder: Path, weights: Path, **changes: Any) -> tuple[Runner, ResQHook, dict[str, Any]]:
    runner = Runner.from_cfg(config(videos, folder, load_from=str(weights), **changes))
    hook = next(hook for hook in runner.hooks if isinstance(hook, ResQHook))
    return runner, hook, runner.test()


def frames_and_labels(runner: Runner) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    items = [runner.test_dataloader.dataset[index] for index in range(len(runner.test_dataloader.dataset))]
    frames = [
        runner.model.data_preprocessor({"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}, False)
        for item in items
    ]
    return [frame["inputs"] for frame in frames], [item["data_samples"].gt_sem_seg.data for item in items]


@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}", "W4A4->W3A3"])
def test_the_runner_gives_the_numbers_of_the_core(videos: Path, weights: Path, tmp_path: Path, precision: str) -> None:
    runner, hook, metrics = run(videos, tmp_path, weights, resq__precision=precision)
    model, (frames, labels) = runner.model, frames_and_labels(runner)

    def predict(logits: torch.Tensor) -> torch.Tensor:
        return model.decode_head.predict_by_feat(logits, [{"img_shape": (32, 48)}]).argmax(1)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, frame: torch.Tensor) -> torch.Tensor:
            return model(frame, None, mode="tensor")

    expected = evaluate(
        Plain(), [frames], {"m": [labels]}, {"m": lambda: MeanIoU(11)}, predict=predict, every_position=True
    )
    by_position = [metrics[f"seg/mIoU_t{t}"] for t in range(3)]
    assert by_position == pytest.approx(expected.by_distance["m"], abs=0.00501)  # MMSeg rounds to two decimals
    assert metrics["seg/mIoU"] == pytest.approx(sum(by_position) / 3)
    assert hook.evaluation is not None
    assert hook.evaluation.bit_shares == expected.bit_shares


def test_the_cost_is_logged_with_the_metric(videos: Path, weights: Path, tmp_path: Path) -> None:
    _, hook, metrics = run(videos, tmp_path, weights)
    assert hook.cost is not None
    assert metrics["resq/gbops_keyframe"] == 64 * hook.cost.macs / 1e9
    assert metrics["resq/gbops_residual"] == 16 * hook.cost.macs / 1e9
    assert metrics["resq/gbops_per_frame"] == pytest.approx((64 + 16 + 16) / 3 * hook.cost.macs / 1e9)
    assert metrics["resq/state_mb"] == hook.cost.state_bytes / 1e6


def test_a_calibrated_checkpoint_needs_no_clips_and_gives_the_same(
    videos: Path, weights: Path, tmp_path: Path
) -> None:
    _, hook, first = run(videos, tmp_path, weights)
    _, _, second = run(videos, tmp_path / "b", tmp_path / CALIBRATED, resq__calibration__dataset=None)
    assert first == second
    saved = torch.load(tmp_path / CALIBRATED, weights_only=False)
    assert hook.settings is not None
    assert ResQConfig.from_dict(saved["meta"]["resq"]) == hook.settings.config


def test_float_weights_load_strictly_and_go_back(videos: Path, weights: Path, tmp_path: Path) -> None:
    runner, _, _ = run(videos, tmp_path, weights)
    plain = Runner.from_cfg(config(videos, tmp_path, resq=None)).model
    before = copy.deepcopy(plain.state_dict())
    plain.load_state_dict(float_state_dict(runner.model), strict=True)
    load_checkpoint(runner.model, str(weights), strict=True)
    float_weights = torch.load(weights)["state_dict"]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, float_weights[name])
    assert any(not torch.equal(value, before[name]) for name, value in float_weights.items())


def test_ranges_of_other_settings_are_found_anew(videos: Path, weights: Path, tmp_path: Path) -> None:
    run(videos, tmp_path, weights)
    _, _, expected = run(videos, tmp_path / "a", weights, resq__precision="W4A4->W3A3")
    _, _, found = run(videos, tmp_path / "b", tmp_path / CALIBRATED, resq__precision="W4A4->W3A3")
    assert found == expected
    with pytest.raises(CheckpointError, match=r"calibrated with keyframe=.*asks for W4A4->W3A3; load the float"):
        run(
            *(videos, tmp_path / "c", tmp_path / CALIBRATED),
            resq__precision="W4A4->W3A3",
            resq__calibration__dataset=None,
        )


def test_without_clips_and_ranges_the_lines_to_write_are_told(videos: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no ranges for W8A8->W4A4.*resq = dict\(calibration=dict\(dataset="):
        run(videos, tmp_path, weights, resq__calibration__dataset=None)


def test_cfg_options_reach_the_stream(videos: Path, weights: Path, tmp_path: Path) -> None:
    _, hook, metrics = run(videos, tmp_path, weights, resq__interval=2)
    assert [name for name in metrics if "mIoU_t" in name] == ["seg/mIoU_t0", "seg/mIoU_t1"]
    assert hook.cost is not None
    assert hook.cost.interval == 2


def test_a_pool_survives_the_command_line(videos: Path, weights: Path, tmp_path: Path) -> None:
    cfg = config(videos, tmp_path)
    action = DictAction(["--cfg-options"], "options")
    arguments = Namespace()
    action(None, arguments, ["resq.precision=W8A8->W4A{0,4,8}"])
    cfg.merge_from_dict(arguments.options)
    runner = Runner.from_cfg(cfg)
    runner.test()
    assert next(iter(residual_layers(runner.model).values())).settings.config.notation == "W8A8->W4A{0,4,8}"


def test_resq_none_is_the_plain_toolkit(videos: Path, weights: Path, tmp_path: Path) -> None:
    runner, hook, metrics = run(videos, tmp_path, weights, resq=None)
    assert hook.settings is None
    assert "resq/gbops_per_frame" not in metrics
    assert type(runner.model.decode_head.conv_seg) is torch.nn.Conv2d
    without = Runner.from_cfg(config(videos, tmp_path, load_from=str(weights), resq=None, default_hooks={}))
    assert without.test() == metrics


def test_frame_quantization_sees_every_labelled_frame_once(videos: Path, weights: Path, tmp_path: Path) -> None:
    runner, hook, metrics = run(videos, tmp_path, weights, resq__precision="W8A8")
    assert len(runner.test_dataloader) == 5
    assert metrics["seg/mIoU"] == metrics["seg/mIoU_t0"]
    assert hook.cost is not None
    assert hook.cost.bops_per_frame == 64 * hook.cost.macs


def test_an_interval_of_one_is_frame_quantization(videos: Path, weights: Path, tmp_path: Path) -> None:
    _, _, frame = run(videos, tmp_path, weights, resq__precision="W8A8", resq__interval=1)
    _, _, one = run(videos, tmp_path, weights, resq__interval=1)
    assert one["seg/mIoU"] == frame["seg/mIoU"]


def test_scene_changes_start_intervals_in_clips_that_run_once(videos: Path, weights: Path, tmp_path: Path) -> None:
    positions = {}
    for threshold in (1e-6, None, 100.0):
        schedule = {"kind": "scene_change", "threshold": threshold}
        changes = {"resq__schedule": schedule, "resq__interval": 9, "resq__calibration__length": 3}
        _, hook, _ = run(videos, tmp_path / str(threshold), weights, **changes)
        assert hook.evaluation is not None
        positions[threshold] = len(hook.evaluation.by_distance["seg/mIoU"])
    # The calibrated threshold is the largest change in clips of three frames, which the square keeps up for three.
    assert positions == {1e-6: 1, None: 3, 100.0: 5}


def test_scene_changes_cost_what_ran(videos: Path, weights: Path, tmp_path: Path) -> None:
    """GIVEN keyframes only, THEN a frame costs what a keyframe costs, and what did not occur is no number."""
    changes = {"resq__interval": 3, "resq__precision": "W8A8->W4A{0,4,8}"}
    schedule = {"kind": "scene_change", "threshold": 1e-6}
    _, hook, metrics = run(videos, tmp_path, weights, resq__schedule=schedule, **changes)
    assert hook.cost is not None
    assert hook.evaluation is not None
    assert hook.evaluation.frame_counts.by_distance == (5,)
    assert metrics["resq/gbops_per_frame"] == metrics["resq/gbops_keyframe"] == 64 * hook.cost.macs / 1e9
    assert math.isnan(metrics["resq/gbops_residual"])
    _, hook, metrics = run(videos, tmp_path / "b", weights, resq__schedule={**schedule, "threshold": 100.0}, **changes)
    assert hook.evaluation.frame_counts.by_distance == (2, 2, 1)
    expected = (2 * metrics["resq/gbops_keyframe"] + 3 * metrics["resq/gbops_residual"]) / 5
    assert metrics["resq/gbops_per_frame"] == pytest.approx(expected)
    weighted = sum(n * metrics[f"seg/mIoU_t{t}"] for t, n in enumerate((2, 2, 1))) / 5
    assert metrics["seg/mIoU"] == pytest.approx(weighted)


def test_unlabelled_frames_are_run_and_not_measured(videos: Path, weights: Path, tmp_path: Path) -> None:
    make_frames(tmp_path, "val", 5)
    make_frames(tmp_path, "calib", 6)
    for path in sorted((tmp_path / "valannot").glob("*.png")):
        if path.stem[-5:] != "00106":
            path.unlink()
    _, _, all_labelled = run(videos, tmp_path / "a", weights)
    runner, _, one_labelled = run(tmp_path, tmp_path / "b", weights)
    assert [int(frame) for frame in runner.test_dataloader.sampler] == [3, 1, 2, 3, 2, 3]
    assert not math.isnan(one_labelled["seg/mIoU"])
    assert one_labelled["seg/mIoU"] != all_labelled["seg/mIoU"]
    _, _, plain = run(tmp_path, tmp_path / "c", weights, resq=None)
    assert set(plain) == {"seg/aAcc", "seg/mIoU", "seg/mAcc"}


@pytest.mark.parametrize("precision", ["W8A8->W4A4", "W8A8->W4A{0,4,8}"])
def test_batches_of_clips_in_step_give_the_same(videos: Path, weights: Path, tmp_path: Path, precision: str) -> None:
    _, hook, one = run(videos, tmp_path, weights, resq__precision=precision)
    changes = {"test_dataloader__batch_sampler": {"type": "resq_mmengine.ClipBatchSampler"}}
    _, batched, many = run(
        *(videos, tmp_path, tmp_path / CALIBRATED),
        resq__precision=precision,
        test_dataloader__batch_size=2,
        **changes,
    )
    assert many == pytest.approx(one)
    assert hook.evaluation is not None
    assert batched.evaluation is not None
    for layer, pool in hook.evaluation.bit_shares.items():
        assert batched.evaluation.bit_shares[layer] == pytest.approx(pool)


@pytest.mark.parametrize(("backend", "toolkit"), [("aimet", "aimet_torch"), ("brevitas", "brevitas")])
def test_the_numbers_are_those_of_the_other_backends(
    videos: Path, weights: Path, tmp_path: Path, backend: str, toolkit: str
) -> None:
    pytest.importorskip(toolkit)
    _, _, expected = run(videos, tmp_path / "torch", weights)
    _, _, found = run(videos, tmp_path, weights, resq__backend=backend)
    assert found == expected
    _, _, again = run(
        *(videos, tmp_path / "again", tmp_path / CALIBRATED), resq__backend=backend, resq__calibration__dataset=None
    )
    assert again == expected


def test_workers_change_nothing(videos: Path, weights: Path, tmp_path: Path) -> None:
    _, _, inside = run(videos, tmp_path, weights)
    _, _, outside = run(videos, tmp_path, tmp_path / CALIBRATED, test_dataloader__num_workers=2)
    assert inside == outside


def test_two_clips_are_two_videos(videos: Path, weights: Path, tmp_path: Path) -> None:
    """[A, B] gives the confusion of A alone and B alone: nothing of A is left when B starts."""
    make_frames(tmp_path, "calib", 6)
    make_frames(tmp_path, "val", 5)
    make_frames(tmp_path, "val", 4, sequence="0001TP", start=700)
    runner, _, _ = run(tmp_path, tmp_path / "w", weights)
    model, kept = runner.model, []
    frames, _ = frames_and_labels(runner)
    names = [runner.test_dataloader.dataset.get_data_info(i)["clip_id"] for i in range(9)]
    assert len(set(names)) == 2
    original = type(model).predict

    def spy(self: Any, inputs: Any, data_samples: Any) -> Any:
        found = original(self, inputs, data_samples)
        kept.append((data_samples[0].metainfo["clip_id"], data_samples[0].metainfo["frame_index"], found))
        return found

    model.predict = spy.__get__(model)
    runner.test()
    first_of_second = next(i for i, (clip, _, _) in enumerate(kept) if clip != kept[0][0])
    with stream(model) as video, torch.no_grad():
        alone = video(frames[names.index(kept[first_of_second][0])], None, mode="tensor")
        alone = model.decode_head.predict_by_feat(alone, [{"img_shape": (32, 48)}]).argmax(1)
    assert torch.equal(kept[first_of_second][2][0].pred_sem_seg.data, alone)


def test_autocast_in_the_test_loop(videos: Path, weights: Path, tmp_path: Path) -> None:
    _, _, full = run(videos, tmp_path, weights)
    _, _, half = run(videos, tmp_path, tmp_path / CALIBRATED, test_cfg__fp16=True)
    assert half["seg/aAcc"] == pytest.approx(full["seg/aAcc"], abs=5)


def test_synchronised_batch_norm_is_folded_like_any_other(videos: Path, weights: Path, tmp_path: Path) -> None:
    _, _, plain = run(videos, tmp_path, weights)
    changes = {"model__backbone__norm_cfg": {"type": "SyncBN"}, "model__decode_head__norm_cfg": {"type": "SyncBN"}}
    runner, _, synchronised = run(videos, tmp_path / "b", weights, **changes)
    assert synchronised == plain
    norms = [module for module in runner.model.modules() if hasattr(module, "running_mean")]
    assert {module.__dict__["_original"] for module in norms} == {_BatchNormXd}  # as MMEngine does in one process
    assert all(isinstance(module, FoldedNorm) for module in norms)


def test_an_averaged_model_is_calibrated_with_its_own_weights(videos: Path, weights: Path, tmp_path: Path) -> None:
    _, _, plain = run(videos, tmp_path, weights)
    _, _, averaged = run(videos, tmp_path / "b", weights, custom_hooks=[{"type": "EMAHook"}])
    assert averaged == plain


def test_the_agreement_with_the_float_model(videos: Path, weights: Path, tmp_path: Path) -> None:
    evaluators = [{"type": "IoUMetric", "prefix": "seg"}, {"type": "resq_mmengine.FloatAgreement"}]
    _, _, fine = run(videos, tmp_path, weights, resq__precision="W16A16->W16A16", test_evaluator=evaluators)
    runner, _, coarse = run(videos, tmp_path, weights, resq__precision="W2A2->W2A2", test_evaluator=evaluators)
    assert fine["agreement"] > 99.5
    assert coarse["agreement"] < fine["agreement"]
    assert "test_step" not in runner.model.__dict__


def test_a_frame_seen_through_another_crop_has_its_own_float_prediction(
    videos: Path, weights: Path, tmp_path: Path
) -> None:
    runner, _, _ = run(videos, tmp_path, weights)
    model, item = runner.model, runner.test_dataloader.dataset[0]
    session = VideoSession(model)
    with torch.no_grad(), session.installed(with_float=True):
        for image in (item["inputs"], item["inputs"].flip(-1), item["inputs"]):
            batch = pseudo_collate([{"inputs": image, "data_samples": copy.deepcopy(item["data_samples"])}])
            [found] = model.test_step(copy.deepcopy(batch))
            with dense_execution():
                [expected] = type(model).test_step(model, batch)
            assert torch.equal(found.float_prediction.pred_sem_seg.data, expected.pred_sem_seg.data)


def test_an_error_in_a_frame_leaves_no_trace(videos: Path, weights: Path, tmp_path: Path) -> None:
    runner, _, first = run(videos, tmp_path, weights)
    original, calls = runner.model.decode_head.forward, []

    def fails(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("interrupted")
        return original(*args)

    runner.model.decode_head.forward = fails
    with pytest.raises(RuntimeError, match="interrupted"):
        runner.test()
    del runner.model.decode_head.forward
    assert runner.test() == first
    assert "test_step" not in runner.model.__dict__


def test_settings_are_demanded(videos: Path, tmp_path: Path) -> None:
    cfg = config(videos, tmp_path)
    del cfg._cfg_dict["resq"]
    with pytest.raises(ConfigError, match=r"ResQHook found no settings; write resq = dict\(precision="):
        Runner.from_cfg(cfg).test()


def test_a_typing_error_is_named_before_anything_runs(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resq of the config: unknown setting intervall. Did you mean 'interval'"):
        Runner.from_cfg(config(videos, tmp_path, resq__intervall=3)).test()
    with pytest.raises(ConfigError, match=r"resq.calibration.length=0 must be a number of frames"):
        Runner.from_cfg(config(videos, tmp_path, resq__calibration__length=0)).test()


def test_a_runner_keeps_its_precision(videos: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(config(videos, tmp_path))
    convert(runner.model, "W4A4->W3A3")
    with pytest.raises(ConfigError, match="already converted to W4A4->W3A3"):
        runner.test()
    assert not is_calibrated(runner.model)


def test_an_image_dataset_works_frame_by_frame_only(videos: Path, weights: Path, tmp_path: Path) -> None:
    images = dataset(videos, "val") | {"type": "BaseSegDataset", "img_suffix": ".png", "seg_map_suffix": ".png"}
    images["metainfo"] = {"classes": tuple("abcdefghijk"), "palette": [[0, 0, i] for i in range(11)]}
    images["lazy_init"] = False
    changes = {"test_dataloader__dataset": images, "test_dataloader__sampler__type": "DefaultSampler"}
    changes["test_dataloader__sampler__shuffle"] = False
    _, _, metrics = run(videos, tmp_path, weights, resq__precision="W8A8", **changes)
    assert metrics["seg/mIoU"] > 0
    with pytest.raises(ConfigError, match="tells no clip_id and no frame_index"):
        run(videos, tmp_path, weights, **changes)
