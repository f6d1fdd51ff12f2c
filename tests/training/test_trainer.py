"""The trainer: what a step does, what it refuses, and what is left when it stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import cross_entropy, labelled_clips, make_net
from torch import Tensor, nn

from resq_plugin import calibrate, convert, load_checkpoint, revert, save_checkpoint, stream
from resq_plugin.config import ResQConfig
from resq_plugin.errors import CheckpointError, ConfigError, TrainingError
from resq_plugin.method.layers import residual_layers
from resq_plugin.training import (
    TrainConfig,
    distillation_loss,
    feature_loss,
    float_teacher,
    one_step,
    train,
    unroll,
)

Clips = list[tuple[Tensor, Any]]
SHORT = TrainConfig(steps=3, batch=2)


@pytest.fixture
def clips() -> Clips:
    """Eight labelled clips of three frames."""
    return labelled_clips()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("precision", ["W4A4->W3A3", "W4A4", "W4A4->W3A{0,3}", "W8A8->W4A{0,2,4}"])
@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
def test_training_lowers_the_loss(precision: str, reference: str, clips: Clips) -> None:
    if precision == "W4A4" and reference != "float":
        pytest.skip("a precision without residuals has no reference")
    model = make_net(precision, reference=reference)
    result = train(model, clips, cross_entropy, TrainConfig(steps=30, batch=4, lr=5e-3))
    assert len(result.losses) == 30
    assert sum(result.losses[-5:]) < 0.9 * sum(result.losses[:5])


def test_one_step_is_adam_on_the_mean_loss_of_the_frames(clips: Clips) -> None:
    config = TrainConfig(steps=1, batch=2, weight_scales="fixed", clip_norm=0, schedule="constant")
    model, twin = make_net(), make_net()
    result = train(model, clips[:2], cross_entropy, config)

    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.Adam([p for n, p in twin.named_parameters() if not n.endswith("scale")], lr=config.lr)
    frames = [torch.stack([clip[0][t] for clip in clips[:2]]) for t in range(3)]
    labels = [torch.stack([clip[1][t] for clip in clips[:2]]) for t in range(3)]
    with stream(twin) as player:
        loss = sum(cross_entropy(player(x), y) for x, y in zip(frames, labels, strict=True)) / 3
    loss.backward()
    optimizer.step()
    assert result.losses[0] == pytest.approx(float(loss.detach()), abs=1e-6)
    found = dict(model.named_parameters())
    for name, value in twin.named_parameters():
        if not name.endswith("scale"):  # the order of the two clips differs, so that sums differ in the last bits
            assert torch.allclose(found[name], value, atol=1e-5), name


def test_accumulation_is_the_whole_batch(clips: Clips) -> None:
    found = []
    for accumulate in (1, 2, 4):
        model = make_net()
        config = TrainConfig(steps=4, batch=4, accumulate=accumulate)
        found.append((train(model, clips, cross_entropy, config).losses, weights_of(model)))
    for losses, _ in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-4)


def test_only_labelled_frames_count(clips: Clips) -> None:
    last = [(frames, [None, None, labels[2]]) for frames, labels in clips]
    config = TrainConfig(steps=1, batch=8, activation_scales="fixed")
    model = make_net()
    expected = make_net().eval()
    with torch.no_grad(), stream(expected) as player:
        outputs = [player(torch.stack([clip[0][t] for clip in clips])) for t in range(3)]
    loss = cross_entropy(outputs[2], torch.stack([clip[1][2] for clip in clips]))
    assert train(model, last, cross_entropy, config).losses[0] == pytest.approx(float(loss), abs=1e-5)
    none = [(frames, [None] * 3) for frames, _ in clips]
    with pytest.raises(ConfigError, match=r"no frame of the interval has a target, and distill='off'"):
        train(make_net(), none, cross_entropy, SHORT)
    train(make_net(), none, cross_entropy, TrainConfig(steps=1, batch=2, distill="logits"))
    mixed = [clips[0], none[1]]
    with pytest.raises(ConfigError, match=r"frame 0 has a target in 1 of 2 clips"):
        train(make_net(), mixed, cross_entropy, SHORT)


def test_truncated_gradients_leave_out_what_flows_through_time(clips: Clips) -> None:
    last = [(frames, [None, None, labels[2]]) for frames, labels in clips]
    for truncate in (False, True):
        model = make_net()
        for layer in residual_layers(model).values():
            layer.learn_weight_scales()
        train(model, last, cross_entropy, TrainConfig(steps=1, batch=8, truncate=truncate, schedule="constant"))
        moved = [
            not torch.equal(layer.keyframe_weight_scale, before.keyframe_weight_scale)
            for layer, before in zip(residual_layers(model).values(), _fresh(), strict=True)
        ]
        assert any(moved) != truncate  # the keyframe learns of the last frame through time alone


def _fresh() -> list[Any]:
    model = make_net()
    for layer in residual_layers(model).values():
        layer.learn_weight_scales()
    return list(residual_layers(model).values())


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
def test_truncation_gives_the_same_loss_with_less_memory(reference: str, clips: Clips) -> None:
    whole = train(make_net(reference=reference), clips, cross_entropy, SHORT).losses[0]
    cut = train(make_net(reference=reference), clips, cross_entropy, TrainConfig(steps=1, batch=2, truncate=True))
    assert cut.losses[0] == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
@pytest.mark.parametrize("precision", ["W4A4->W3A3", "W4A4->W3A{0,3}", "W4A4"])
def test_checkpointing_gives_the_same_gradients(reference: str, precision: str, clips: Clips) -> None:
    curves, weights = [], []
    for checkpointing in (False, True):
        model = make_net(precision, reference=reference)
        config = TrainConfig(steps=3, batch=2, checkpointing=checkpointing, distill="logits")
        curves.append(train(model, clips, cross_entropy, config).losses)
        weights.append(weights_of(model))
    assert curves[0] == curves[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_checkpointing_keeps_less(clips: Clips) -> None:
    """Bytes that autograd holds at the end of the forward pass: T = 8 with it against T = 3 without."""
    kept = {}
    for length, checkpointing in ((3, False), (8, True)):
        model = make_net("W4A4->W3A3").train()
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        frames = list(torch.stack([frames for frames, _ in labelled_clips(4, length)], 1))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), one_step(model):
            outputs = list(unroll(model, frames, checkpointing=checkpointing))
            kept[length] = sum(seen.values())
        del outputs
    assert kept[8] < 1.5 * kept[3]


@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_mixed_precision_trains_alike(autocast: str, clips: Clips) -> None:
    plain = train(make_net("W8A8->W8A8"), clips, cross_entropy, TrainConfig(steps=5, batch=4)).losses
    mixed = train(
        make_net("W8A8->W8A8"), clips, cross_entropy, TrainConfig(steps=5, batch=4, autocast=autocast)
    ).losses
    assert mixed == pytest.approx(plain, abs=0.05)


def test_settings_of_scales(clips: Clips) -> None:
    for activation in ("learned", "fixed"):
        for weight in ("learned", "fixed"):
            model = make_net(weights="channel")
            before = weights_of(model)
            config = TrainConfig(steps=2, batch=2, activation_scales=activation, weight_scales=weight)
            train(model, clips, cross_entropy, config)
            after = weights_of(model)
            moved = {name for name in before if not torch.equal(before[name], after[name])}
            assert any(name.endswith("quantizer.scale") for name in moved) == (activation == "learned")
            assert any(name.endswith("weight_scale") for name in after) == (weight == "learned")
            assert any(name.endswith("weight") for name in moved)


@pytest.mark.parametrize("live", [False, True])
def test_statistics_of_batch_norms(live: bool, clips: Clips) -> None:
    model = convert(
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2, stride=2)).eval(), ResQConfig.parse("W8A8->W8A8")
    )
    calibrate(model, [list(clips[0][0].unsqueeze(1))])
    train(model, clips, cross_entropy, TrainConfig(steps=2, batch=2, batch_norm="live" if live else "frozen"))
    assert (float(model[0].running_mean.abs().max()) > 0) == live
    assert not model.training
    assert not model[0].training


@pytest.mark.parametrize("what", ["logits", "features"])
def test_the_float_model_teaches(what: str, clips: Clips) -> None:
    """What is learned from the teacher alone brings the student nearer to it, in the measure of the loss."""
    model = make_net("W3A3->W3A3")
    teacher = float_teacher(model)
    unlabelled = [(frames, [None] * 3) for frames, _ in clips]
    measure = distillation_loss if what == "logits" else feature_loss

    def distance() -> float:
        with torch.no_grad(), stream(model) as player:
            frames = [torch.stack([clip[0][t] for clip in clips]) for t in range(3)]
            return sum(float(measure(player(x), teacher(x))) for x in frames)

    before = distance()
    config = TrainConfig(steps=40, batch=4, lr=2e-3, distill=what, features=("5",))
    train(model, unlabelled, cross_entropy, config)
    assert distance() < 0.8 * before
    for parameter in teacher.parameters():
        assert not parameter.requires_grad


def test_the_teacher_is_the_float_model_bit_for_bit(clips: Clips) -> None:
    model = make_net()
    frames = clips[0][0]
    teacher = float_teacher(model)
    float_model = revert(make_net())
    with torch.no_grad():
        assert torch.equal(teacher(frames), float_model(frames))


def test_averaged_weights_are_what_remains(clips: Clips) -> None:
    seen: list[dict[str, Tensor]] = []
    model = make_net()
    start = weights_of(model)
    config = TrainConfig(steps=3, batch=2, ema=0.5, weight_scales="fixed")
    train(model, clips, cross_entropy, config, on_step=lambda step, values: seen.append(weights_of(model)))
    average = start
    for weights in seen:
        average = {name: 0.5 * average[name] + 0.5 * weights[name] for name in average}
    for name, value in model.named_parameters():
        assert torch.allclose(value, average[name], atol=1e-6), name


def test_intervals_are_drawn_from_the_set() -> None:
    lengths: list[int] = []

    class Watch(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.frames = inner, 0

        def forward(self, frame: Tensor) -> Tensor:
            self.frames += 1
            return self.inner(frame)

    model = Watch(make_net())

    def note(*_: Any) -> None:
        lengths.append(model.frames)
        model.frames = 0

    inner = labelled_clips(length=5)
    for layer_name, layer in residual_layers(model).items():
        assert layer.settings.name == layer_name.removeprefix("inner.")
    train(model, inner, cross_entropy, TrainConfig(steps=20, batch=2, intervals=(1, 3, 5)), on_step=note)
    assert set(lengths) == {1, 3, 5}
    with pytest.raises(ConfigError, match="a clip has 3 frames and 3 targets, but intervals of 4 are trained"):
        train(make_net(), labelled_clips(), cross_entropy, TrainConfig(steps=1, intervals=(4,)))


def test_validation_and_progress(clips: Clips, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_net()
    modes = []

    def validate(found: nn.Module) -> float:
        modes.append(found.training)
        return 12.5

    result = train(model, clips, cross_entropy, SHORT, validate=validate, validate_every=2, progress=True)
    assert result.validation == {2: 12.5, 3: 12.5}
    assert modes == [False, False]
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "accuracy=12.50" in shown
    assert "loss=" in shown


def test_a_loss_that_is_no_number_stops(clips: Clips, tmp_path: Path) -> None:
    steps = []

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        steps.append(1)
        return cross_entropy(scores, labels) * (math.nan if len(steps) > 9 else 1)

    config = TrainConfig(steps=8, batch=2, save_every=1)
    with pytest.raises(TrainingError, match=r"the loss became nan in step 4; the checkpoint of step 3 is kept in"):
        train(make_net(), clips, loss, config, folder=tmp_path)
    kept = torch.load(tmp_path / "training.pt", weights_only=True)
    assert kept["step"] == 3
    assert all(bool(torch.isfinite(v).all()) for v in kept["model"].values() if v.is_floating_point())


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "became 0 in step 2"), (-0.5, "became -0.5 in step 2"), (math.nan, "became nan in step 2")],
)
def test_a_dead_scale_stops(value: float, said: str, clips: Clips, tmp_path: Path) -> None:
    model = make_net()
    layer = residual_layers(model)["3"]

    class Breaks(torch.optim.Adam):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            super().step(*args, **kwargs)
            if self.state[layer.weight]["step"] == 2:
                with torch.no_grad():
                    layer.residual_quantizers[0].scale.fill_(value)

    with pytest.raises(
        TrainingError, match=rf"layer 3 \(residual.0\): the activation scale {said}; the checkpoint of step 1"
    ):
        train(
            model, clips, cross_entropy, TrainConfig(steps=4, batch=2, save_every=1), optimizer=Breaks, folder=tmp_path
        )
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 1


def test_another_run_is_not_continued(clips: Clips, tmp_path: Path) -> None:
    train(make_net(), clips, cross_entropy, SHORT, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"a run with other settings \(lr=0.0005\)"):
        train(make_net(), clips, cross_entropy, TrainConfig(steps=3, batch=2, lr=1.0), folder=tmp_path)
    again = train(
        make_net(), clips, cross_entropy, TrainConfig(steps=3, batch=2, lr=1e-3), folder=tmp_path, resume=False
    )
    assert again.steps == 3
    (tmp_path / "training.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(make_net(), clips, cross_entropy, SHORT, folder=tmp_path)


def test_what_is_no_data_set(clips: Clips) -> None:
    with pytest.raises(ConfigError, match="clips of type generator have no length"):
        train(make_net(), (clip for clip in clips), cross_entropy, SHORT)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is no clip to train on"):
        train(make_net(), [], cross_entropy, SHORT)


class WithAuxiliary(nn.Module):
    """A net with a head that no frame reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(3, 4, 2, stride=2)
        self.auxiliary = nn.Conv2d(4, 4, 1)

    def forward(self, frame: Tensor) -> Tensor:
        return self.main(frame)


def test_a_run_goes_on_whether_its_ranges_are_found_or_loaded(clips: Clips, tmp_path: Path) -> None:
    """Calibration turns a head that no frame reaches into a float layer, loading ranges does not."""
    found = convert(WithAuxiliary(), ResQConfig.parse("W4A4->W3A3"))
    calibrate(found, [list(frames.unsqueeze(1)) for frames, _ in clips])
    save_checkpoint(found, tmp_path / "calibrated.pt")
    loaded = convert(WithAuxiliary(), ResQConfig.parse("W4A4->W3A3"))
    load_checkpoint(loaded, tmp_path / "calibrated.pt")
    config = TrainConfig(steps=4, batch=2, save_every=2)
    expected = train(found, clips, cross_entropy, config).losses

    class StoppedError(Exception):
        pass

    def stop(step: int, _: Any) -> None:
        if step == 2:
            raise StoppedError

    again = convert(WithAuxiliary(), ResQConfig.parse("W4A4->W3A3"))
    load_checkpoint(again, tmp_path / "calibrated.pt")
    calibrate(again, [list(frames.unsqueeze(1)) for frames, _ in clips])
    with pytest.raises(StoppedError):
        train(again, clips, cross_entropy, config, folder=tmp_path, on_step=stop)
    assert train(loaded, clips, cross_entropy, config, folder=tmp_path).losses == pytest.approx(expected, abs=1e-6)
