"""A checkpoint belongs to its network by names and shapes, whatever the training loop put before the names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resq_plugin import convert, load_checkpoint
from resq_plugin.conversion import is_range_of, match_state, read_checkpoint, unwrap_state
from resq_plugin.errors import CheckpointError

State = dict[str, Tensor]


def net(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, classes, 1)).eval()


def filled(state: State) -> State:
    return {key: torch.full_like(value, number + 1) for number, (key, value) in enumerate(state.items())}


WANTED = net().state_dict()
GIVEN = filled(WANTED)


def match(state: Any, **settings: Any) -> Any:
    return match_state(state, WANTED, source="file.pth", network="Net", **settings)


def prefixed(prefix: str) -> State:
    return {prefix + key: value for key, value in GIVEN.items()}


def test_what_fits_stays_as_it_is() -> None:
    found = match(GIVEN)
    assert (found.state, found.notices) == (GIVEN, ())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "_orig_mod.", "ema_", "ema.", "model.module.", "state_dict.model.", "ema_model.module."],
)
def test_known_prefixes_are_taken_off_with_a_notice(prefix: str) -> None:
    found = match(prefixed(prefix))
    assert found.state.keys() == WANTED.keys()
    assert all(found.state[key] is GIVEN[key] for key in WANTED)
    assert found.notices == (f"the prefix {prefix} was taken off its names",)


def test_counters_of_averaged_models_go_with_their_prefix() -> None:
    assert match(prefixed("module.") | {"n_averaged": torch.tensor(3)}).state.keys() == WANTED.keys()
    assert match(prefixed("module.") | {"steps": torch.tensor(3)}).state.keys() == WANTED.keys()
    with pytest.raises(CheckpointError, match=r"Unexpected keys: 1 of the file's 10 \(steps\)"):
        match(GIVEN | {"steps": torch.tensor(3)})


@pytest.mark.parametrize("name", ["ema_{}", "ema.{}", "ema_model.{}", "flat"])
def test_averaged_copies_beside_the_weights_are_not_used(name: str) -> None:
    names = {key: "ema_" + key.replace(".", "_") if name == "flat" else name.format(key) for key in GIVEN}
    found = match(GIVEN | {names[key]: torch.zeros_like(value) for key, value in GIVEN.items()})
    assert all(found.state[key] is GIVEN[key] for key in WANTED)
    assert found.state.keys() == WANTED.keys()
    assert found.notices[0].startswith(f"its {len(GIVEN)} averaged weights (")


def test_counters_of_batch_norms_may_be_missing() -> None:
    found = match({key: value for key, value in GIVEN.items() if "num_batches" not in key})
    assert found.state["1.num_batches_tracked"] is WANTED["1.num_batches_tracked"]
    assert found.notices == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("3.weight"), r"Missing keys: 1 of the network's 9 \(3\.weight\)\. Take the check"),
        (lambda state: state.update(head=torch.zeros(1)), r"Unexpected keys: 1 of the file's 10 \(head\)"),
        (lambda state: state.pop("1.running_mean"), r"Missing keys: 1 .*1\.running_mean"),
        (
            lambda state: state.update(filled(net(19).state_dict())),
            r"2 size mismatch for 3\.weight \(19, 4, 1, 1\) in the file, \(3, 4, 1, 1\) in the network; 3\.bias .*cl",
        ),
        (lambda state: state.update({"3.weight": 1.0}), r"1 size mismatch for 3\.weight None in the file"),
        (
            lambda state: state.clear(),
            r"Missing keys: 8 of the network's 9 \(0\.weight, 0\.bias, 1.*\.\.\.\)\. No name",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_counted(change: Callable[[State], Any], message: str) -> None:
    state = dict(GIVEN)
    change(state)
    with pytest.raises(CheckpointError, match=message) as raised:
        match(state)
    assert str(raised.value).startswith("file.pth does not fit Net; the model is unchanged. ")


def test_an_unknown_prefix_is_told_by_what_is_on_each_side() -> None:
    with pytest.raises(CheckpointError, match=r"No name fits: .* under a prefix that is not known") as raised:
        match(prefixed("teacher.backbone."))
    assert "0.weight" in str(raised.value)
    assert "teacher.backbone.0.weight" in str(raised.value)


def test_heads_that_no_test_reads_may_be_missing_on_either_side() -> None:
    head = {"aux.weight": torch.zeros(2), "aux.bias": torch.zeros(1)}
    more = match(GIVEN | head, unused=("aux.",))
    assert (more.state.keys(), len(more.notices)) == (WANTED.keys(), 1)
    assert "has 2 entries aux.* that Net lacks" in more.notices[0]

    less = match_state(GIVEN, {**WANTED, **head}, source="f", network="Net", unused=("aux.",))
    assert less.state["aux.bias"] is head["aux.bias"]
    assert less.notices == ("aux.* is not used in a test; f lacks them",)

    half = match_state(
        GIVEN | {"aux.bias": torch.ones(1)}, {**WANTED, **head}, source="f", network="Net", unused=("aux.",)
    )
    assert half.notices
    for state in (GIVEN | head, GIVEN):
        with pytest.raises(CheckpointError):
            match_state(state, WANTED if state is not GIVEN else {**WANTED, **head}, source="f", network="Net")


def test_names_of_ranges() -> None:
    is_range = is_range_of(["stem.0", "head"])
    assert is_range("stem.0.keyframe_quantizer.scale")
    assert is_range("head._extra_state")
    assert is_range("resq.folded")
    assert not any(map(is_range, ["stem.0.weight", "stem.0.bias", "stem.1.scale", "headless.scale", "stem.scale"]))


def test_the_state_dict_is_found_however_deep_it_lies() -> None:
    for values in (GIVEN, {"state_dict": GIVEN}, {"model": GIVEN, "epoch": 3}, {"state_dict": {"model": GIVEN}}):
        assert unwrap_state(values) is GIVEN


# --- files -----------------------------------------------------------------------------------------------------------


def history(folder: Path) -> Path:
    """What MMEngine's training writes: histories with NumPy arrays beside the weights."""
    logging_ = pytest.importorskip("mmengine.logging")
    import copyreg

    ours = copyreg.dispatch_table.pop(logging_.HistoryBuffer, None)  # as without resq_mmengine
    try:
        values = {
            "meta": {
                "epoch": 1,
                "seed": np.int64(3),
                "dataset_meta": {"classes": ("a",), "palette": np.zeros((1, 3))},
            },
            "state_dict": prefixed("module."),
            "message_hub": {"log_scalars": {"train/loss": logging_.HistoryBuffer([0.5, 1.0], [1, 1])}},
            "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]},
        }
        torch.save(values, folder / "epoch_1.pth")
    finally:
        if ours is not None:
            copyreg.dispatch_table[logging_.HistoryBuffer] = ours
    return folder / "epoch_1.pth"


def test_a_file_of_a_training_loop_is_read_with_its_numbers(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    values = read_checkpoint(history(tmp_path))

    assert values["meta"]["seed"] == 3
    assert torch.equal(values["state_dict"]["module.3.bias"], GIVEN["3.bias"])
    assert set(torch.serialization.get_safe_globals()) == before


def test_load_checkpoint_takes_it_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = convert(net(), "W8A8->W4A4")
    with caplog.at_level(logging.WARNING):
        load_checkpoint(model, history(tmp_path))
    assert torch.equal(model[3].bias, GIVEN["3.bias"])
    assert "epoch_1.pth: the prefix module. was taken off its names." in caplog.text


class Gadget:
    """Would be built by a file that is trusted."""


class Reaching:
    """Reaches for an attribute by pickle."""

    def __reduce__(self) -> Any:
        return getattr, ("text", "upper")


@pytest.mark.parametrize(("kind", "name"), [(Gadget, "Gadget"), (Reaching, "weights_only=True")])
def test_what_would_have_to_be_trusted_is_named_with_the_line_to_write(kind: type, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": GIVEN, "extra": kind()}, path)
    with pytest.raises(CheckpointError, match=name) as raised:
        read_checkpoint(path)
    if kind is Gadget:
        message = str(raised.value)
        assert "which only a trusted file may build" in message
        code = message.partition('python -c "')[2].rstrip('"')
        assert "weights_only=False" in code
        exec(code.replace("'weights.pth'", repr(str(tmp_path / "weights.pth"))))
        assert read_checkpoint(tmp_path / "weights.pth")["state_dict"].keys() == GIVEN.keys()
