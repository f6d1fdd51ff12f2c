"""`compare`: every row equals what a user gets by hand, and a sweep loses nothing."""

from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

from resq_plugin import ResQConfig, calibrate, compare, convert, load_checkpoint, measure_cost, stream
from resq_plugin.comparison import expand
from resq_plugin.conversion import checkpoint_config
from resq_plugin.errors import ConfigError, ConversionError, ReportError
from resq_plugin.evaluation import Agreement, MeanIoU, evaluate
from resq_plugin.report import draw_labels

SHAPE = (1, 3, 12, 16)


class Net(nn.Sequential):
    """A foldable batch norm, in-place ReLU, four classes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)
        )


def network() -> nn.Module:
    return seeded(Net, 3)


def film(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, 3, 12, 16, generator=generator)
    steps = 0.1 * torch.randn(frames, 3, 12, 16, generator=generator)
    return start + steps.cumsum(0)


SETTINGS = ["W8A8", "W8A8->W4A4", "W8A8->W4A{0,4,8}"]
COMMON: dict[str, Any] = {"calibration": 0.25, "progress": False}


def by_hand(config: ResQConfig, frames: list[Tensor], first: int) -> tuple[tuple[float, ...], float]:
    """Agreement by position and BOPs of one setting, without the sweep."""
    net = network()
    with torch.no_grad():
        targets = [[net(frame).argmax(1) for frame in frames[first:]]]
    convert(net, config, example=frames[first])
    clips = [frames[start : min(start + 3, first)] for start in range(0, first - 1, 3)]
    calibrate(net, clips)
    found = evaluate(
        net, [frames[first:]], {"agreement": targets}, {"agreement": Agreement}, predict=lambda z: z.argmax(1)
    )
    return found.by_distance["agreement"], measure_cost(net, SHAPE, **found.amortized()).bops_per_frame


def test_rows_are_what_a_user_gets_by_hand() -> None:
    frames = list(film(24).unsqueeze(1))
    found = compare(network(), film(24), SETTINGS, **COMMON)
    assert [row["scheme"] for row in found.rows] == ["float", "frame", "resq", "dynamic"]
    assert found.rows[0]["agreement"] == found.rows[0]["accuracy"] == 100.0
    for row, text in zip(found.rows[1:], SETTINGS, strict=True):
        agreement, bops = by_hand(ResQConfig.parse(text, interval=3), frames, 6)
        assert row["by_distance"] == list(agreement)
        assert row["accuracy"] == pytest.approx(sum(agreement) / len(agreement), abs=1e-9)
        assert row["gbops_per_frame"] == pytest.approx(bops / 1e9, rel=1e-12)
    assert found.rows[1]["relative_bops"] == 1.0
    assert found.rows[2]["relative_bops"] == pytest.approx((64 + 2 * 16) / 3 / 64)


def test_frame_quantization_on_the_keyframes_of_another_interval_is_a_row_of_its_own() -> None:
    found = compare(network(), film(24), ["W8A8", ResQConfig.parse("W8A8", interval=2)], **COMMON)
    assert [row["setting"] for row in found.rows] == ["float", "W8A8", "W8A8 interval=2"]
    assert [found.configs[row["setting"]].interval for row in found.rows[1:]] == [3, 2]  # type: ignore[union-attr]
    assert [len(row["by_distance"]) for row in found.rows[1:]] == [3, 2]


def test_the_model_is_given_back_as_it_was() -> None:
    net = network().train()
    before, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    compare(net, film(20), SETTINGS, **COMMON)
    assert [type(module) for module in net] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags


def test_the_model_is_given_back_after_an_error() -> None:
    net = network()

    def break_down(output: Tensor) -> Tensor:
        if any("ResQ" in type(module).__name__ for module in net.modules()):
            raise KeyboardInterrupt
        return output.argmax(1)

    with pytest.raises(KeyboardInterrupt):
        compare(net, film(20), SETTINGS, predict=break_down, **COMMON)
    assert [type(module) for module in net] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]


@pytest.mark.parametrize("form", ["tensor", "frames", "videos", "five dimensions"])
def test_frames_may_come_in_any_of_these_forms(form: str) -> None:
    video = film(20)
    frames: Any = {
        "tensor": video,
        "frames": list(video.unsqueeze(1)),
        "videos": [list(video.unsqueeze(1))],
        "five dimensions": video.unsqueeze(0),
    }[form]
    rows = compare(network(), frames, ["W8A8->W4A4"], **COMMON).rows
    assert rows == compare(network(), video, ["W8A8->W4A4"], **COMMON).rows


def test_labels_are_what_accuracy_is_of_and_agreement_stays() -> None:
    video = film(24)
    with torch.no_grad():
        labels: list[Tensor | None] = [network()(frame[None]).argmax(1) for frame in video]
    labels[7] = None
    found = compare(network(), video, ["W8A8->W4A4"], labels=labels, **COMMON)
    assert {row["metric"] for row in found.rows} == {"mIoU"}
    assert found.rows[0]["accuracy"] == 100.0
    assert 0 < found.rows[1]["accuracy"] < 100
    named = compare(network(), video, ["W8A8->W4A4"], labels=labels, metric=("IoU of 4", lambda: MeanIoU(4)), **COMMON)
    assert named.rows[1]["metric"] == "IoU of 4"
    assert named.rows[1]["accuracy"] == found.rows[1]["accuracy"]


def test_other_clips_may_calibrate_and_then_all_frames_are_measured() -> None:
    clips = [film(3, seed) for seed in (1, 2)]
    found = compare(network(), film(9), ["W8A8->W4A4"], calibration=clips, progress=False)
    assert "9 frames" in str(found.details) or "other clips" in str(found.details)
    net = network()
    convert(net, ResQConfig.parse("W8A8->W4A4"), example=film(9)[:1])
    calibrate(net, clips)
    frames = list(film(9).unsqueeze(1))
    with torch.no_grad():
        targets = [[network()(frame).argmax(1) for frame in frames]]
        by_distance = evaluate(
            net, [frames], {"a": targets}, {"a": Agreement}, predict=lambda z: z.argmax(1)
        ).by_distance["a"]
    assert found.rows[1]["by_distance"] == list(by_distance)


class Counting(nn.Sequential):
    """Counts its calls, and stops at one of them if told so."""

    calls = 0
    limit: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        if self.limit is not None and self.calls > self.limit:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr(Counting, "calls", 0)
    monkeypatch.setattr(Counting, "limit", None)
    return Counting


def test_a_killed_sweep_goes_on_where_it_was(
    tmp_path: Path, counting: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(network(), film(24), SETTINGS, folder=tmp_path / "whole", **COMMON)
    # While the second quantized setting is measured, for which no frame calibrates: the first one's statistics serve.
    monkeypatch.setattr(counting, "limit", 1 + 1 + 18 + (1 + 6 + 18) + 1 + 4)
    with pytest.raises(KeyboardInterrupt):
        compare(counting(*network()).eval(), film(24), SETTINGS, folder=tmp_path / "killed", **COMMON)
    done = json.loads((tmp_path / "killed" / "rows.json").read_text())["rows"]
    assert 2 <= len(done) < len(whole.rows)
    names = {row["setting"] for row in done}
    assert done == [dict(row) for row in whole.rows if row["setting"] in names]
    monkeypatch.setattr(counting, "limit", None)
    resumed = compare(counting(*network()).eval(), film(24), SETTINGS, folder=tmp_path / "killed", **COMMON)
    assert resumed.rows == whole.rows
    counting.calls = 0
    compare(counting(*network()).eval(), film(24), SETTINGS, folder=tmp_path / "killed", **COMMON)
    assert counting.calls <= 84  # a probe, costs, pictures of float and three settings, errors of layers


def test_another_sweep_in_the_folder_sets_the_earlier_one_aside_and_finds_it_again(tmp_path: Path) -> None:
    """GIVEN other frames, of which the first may be the same, other clips, labels or weights."""
    same_start, clips, other_clips = film(20), [list(film(3, 7).unsqueeze(1))], [list(film(3, 8).unsqueeze(1))]
    same_start[10:] *= 1.5
    zeros, ones = ([torch.full((1, 12, 16), value)] * 20 for value in (0, 1))
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(1.01)
    runs: list[tuple[nn.Module, Tensor, dict[str, Any]]] = [
        (network(), film(20), {}),
        (network(), film(20, seed=5), {}),
        (network(), same_start, {}),
        (net, film(20), {}),
        (network(), film(20), {"calibration": clips}),
        (network(), film(20), {"calibration": other_clips}),
        (network(), film(20), {"labels": zeros}),
        (network(), film(20), {"labels": ones}),
    ]
    alone = [compare(model, frames, ["W8A8"], **{**COMMON, **more}).rows for model, frames, more in runs]
    for _ in range(2):
        for (model, frames, more), expected in zip(runs, alone, strict=True):
            found = compare(model, frames, ["W8A8"], folder=tmp_path, **{**COMMON, **more})
            assert found.rows == expected
            assert tuple(json.loads((tmp_path / "rows.json").read_text())["rows"]) == expected
            assert (tmp_path / "checkpoints").exists()
    earlier = list(tmp_path.glob("earlier-*"))
    assert len(earlier) == len(runs) - 1
    assert all((place / "rows.json").exists() and any((place / "checkpoints").iterdir()) for place in earlier)


def test_pages_and_figures_are_set_aside_with_their_rows(tmp_path: Path) -> None:
    compare(network(), film(20), ["W8A8"], folder=tmp_path, **COMMON).report(tmp_path / "report.html")
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.parent.name == "figures" for path in before)
    compare(network(), film(20, seed=5), ["W8A8"], folder=tmp_path, **COMMON)
    (earlier,) = tmp_path.glob("earlier-*")
    assert {path.relative_to(earlier) for path in earlier.rglob("*") if path.is_file()} == before


def test_what_holds_no_rows_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("{")
    with pytest.raises(ReportError, match="holds no rows of a comparison"):
        compare(network(), film(20), ["W8A8"], folder=tmp_path, **COMMON)
    assert (tmp_path / "rows.json").read_text() == "{"


def test_checkpoints_of_rows_load_into_their_models(tmp_path: Path) -> None:
    frames = film(20)
    found = compare(network(), frames, SETTINGS, folder=tmp_path, **COMMON)
    for row in found.rows[1:]:
        path = tmp_path / "checkpoints" / f"{expand([found.configs[row['setting']]])[1].slug}.pth"
        config = checkpoint_config(path)
        net = convert(network(), config)
        load_checkpoint(net, path)
        with torch.no_grad(), stream(net) as video:
            outputs = [video(frame[None]).argmax(1) for frame in frames[5:]]
        with torch.no_grad():
            targets = [network()(frame[None]).argmax(1) for frame in frames[5:]]
        equal = [float((a == b).double().mean()) for a, b in zip(outputs, targets, strict=True)]
        positions = len(row["by_distance"])
        by_position = [100 * sum(equal[t::positions]) / len(equal[t::positions]) for t in range(positions)]
        assert by_position == pytest.approx(row["by_distance"])


# --- what a result can do -----------------------------------------------------------------------------------------


def test_a_result_prints_as_a_table_and_a_sentence_of_80_columns() -> None:
    found = compare(network(), film(24), SETTINGS, **COMMON)
    lines = found.table().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("W8A8→W4A4" in line for line in lines) == 1
    assert str(found).endswith(found.finding)


def test_python_lines_of_a_row_run_and_give_its_model() -> None:
    frames = list(film(24).unsqueeze(1))
    found = compare(network(), film(24), ["W8A8->W4A{0,4}"], intervals=[2], thresholds=[0.2], **COMMON)
    code = found.python(found.rows[1])
    assert "ResQConfig.parse('W8A8->W4A{0,4}', interval=2, policy={'threshold': 0.2})" in code
    clips = [frames[start : min(start + 2, 6)] for start in range(0, 5, 2)]
    space: dict[str, Any] = {"model": network(), "clips": clips, "frames": frames[6:]}
    exec("import torch\n" + code, space)
    with torch.no_grad():
        targets = [network()(frame).argmax(1) for frame in frames[6:]]
    equal = [
        float((output.argmax(1) == target).double().mean())
        for output, target in zip(space["outputs"], targets, strict=True)
    ]
    expected = [100 * sum(equal[t::2]) / len(equal[t::2]) for t in range(2)]
    assert found.rows[1]["by_distance"] == pytest.approx(expected)
    assert found.fragment(found.rows[1]).startswith("resq = dict(precision='W8A8->W4A{0,4}', interval=2, policy=")


def test_best_is_the_cheapest_within_the_drop() -> None:
    found = compare(network(), film(24), SETTINGS, **COMMON)
    best = found.best(max_drop=100.0)
    assert best["relative_bops"] == min(row["relative_bops"] for row in found.rows)
    with pytest.raises(ConfigError, match=r"no setting reaches 101.0 % agreement; the nearest is"):
        found.best(max_drop=-1.0)


def test_a_report_and_a_figure_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = compare(network(), film(24), SETTINGS, **COMMON)
    assert found.plot(tmp_path / "plot.png").is_file()
    html = found.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert found.finding.split(":")[0] in html
    assert "agreement" in html


def test_schemes_are_shown_side_by_side_as_they_were_measured(tmp_path: Path) -> None:
    pytest.importorskip("av")
    net, frames = network(), film(24)
    found = compare(net, frames, SETTINGS, folder=tmp_path, **COMMON)
    assert found.showcase is not None
    assert list(found.showcase.columns)[:2] == ["Video", "Float"]
    assert sum(name.startswith(("Frame", "ResQ", "Dynamic")) for name in found.showcase.columns) == 3
    assert any(name.startswith("Bits per pixel") for name in found.showcase.columns)
    assert {len(pictures) for pictures in found.showcase.columns.values()} == {18}
    with torch.no_grad():
        labels = [network()(frame[None]).argmax(1) for frame in frames[6:]]
    pictures = found.showcase.columns["Video"]
    drawn = draw_labels()
    for shown, picture, label in zip(found.showcase.columns["Float"], pictures, labels, strict=True):
        assert torch.equal(shown, drawn(picture, label))
    assert [type(module) for module in net] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert found.film(tmp_path / "compare.mp4").stat().st_size > 1000


def test_errors_on_a_residual_frame_are_those_of_the_outputs(tmp_path: Path) -> None:
    """Of ResQ, Dynamic-ResQ and the frame quantization that costs about as much, against float, on frame T - 1."""
    frames = film(24)
    found = compare(network(), frames, ["W8A8", "W8A4", *SETTINGS[1:]], folder=tmp_path, **COMMON)
    showcase = found.showcase
    assert showcase is not None
    assert showcase.errors_at == 2
    names = [name.partition("\n")[::2] for name in showcase.errors]
    assert names[0] == ("Frame, 50 % of the BOPs", "W8A4")
    assert names[1] == ("ResQ, 50 % of the BOPs", "W8A8→W4A4, T=3")
    assert names[2][0].startswith("Dynamic-ResQ, ")
    for row, error in zip(found.rows[2:], showcase.errors.values(), strict=True):
        net = convert(network(), checkpoint_config(found.checkpoint(row)))
        load_checkpoint(net, found.checkpoint(row))
        with torch.no_grad(), stream(net, interval=row["interval"]) as video:
            output = [video(frame[None]) for frame in frames[6:9]][-1]
            exact = network()(frames[8:9])
        ratio = float((output - exact).norm() / exact.norm())
        assert float(error.square().mean().sqrt()) == pytest.approx(ratio, rel=1e-5)
        assert error.shape == (12, 16)


def test_without_pictures_a_film_says_what_to_give() -> None:
    found = compare(network(), film(20), ["W8A8"], **COMMON)
    with pytest.raises(ConfigError, match=r"there are no pictures of this comparison; give compare a folder"):
        found.film("film.mp4")


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": []}, r"settings=\[\] is not allowed; write a list of at least one"),
        ({"settings": ["W8A8=>W4A4"]}, r"cannot read the precision 'W8A8=>W4A4'"),
        ({"intervals": [0]}, r"interval=0 is not allowed"),
        ({"intervals": []}, r"intervals=\[\] is not allowed"),
        ({"intervals": [40]}, r"T = 40 is longer than the longest video, which has 18 frames to measure"),
        ({"calibration": 1.5}, r"calibration=1.5 is not allowed; write a share of the frames such as 0.25, or clips"),
        ({"frames": film(5)}, r"video 0 has 5 frames, of which 1 would calibrate"),
        ({"frames": torch.zeros(3, 12, 16)}, r"frames have shape \(3, 12, 16\); a video is \(T, C, H, W\)"),
        ({"frames": iter(film(5))}, r"frames are a [a-z_]*iterator; they are run once per setting"),
        ({"frames": [[film(5)] * 20]}, r"has shape \(5, 3, 12, 16\); a frame is \(1, C, H, W\): write list\(clip"),
        ({"frames": [list(film(20))]}, r"has shape \(3, 12, 16\); .* write frame.unsqueeze\(0\)"),
        (
            {"frames": [[f[None].byte() for f in film(20)]]},
            r"is uint8; a model takes normalised floating-point frames",
        ),
        ({"frames": []}, r"there is no frame to compare on"),
        ({"labels": [None] * 3}, r"there are \[3\] labels for videos of \[24\] frames"),
        ({"predict": lambda z: None}, r"predict returned an object of class NoneType; it must return a tensor"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"frames": film(24), "settings": ["W8A8->W4A4"], **COMMON, **changes}
    with pytest.raises(ConfigError, match=message):
        compare(network(), **arguments)


def test_a_converted_model_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"compare takes the float model; call resq_plugin.revert"):
        compare(convert(network(), "W8A8"), film(20), **COMMON)


def test_an_output_without_classes_asks_for_predict() -> None:
    with pytest.raises(ConfigError, match=r"has shape \(1, 1, 12, 16\), in which no channel dimension .* predict="):
        compare(nn.Sequential(nn.Conv2d(3, 1, 1)).eval(), film(20), **COMMON)


class Halving(nn.Module):
    """Adds a map to one that went through two strides, and so takes sizes that 4 divides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 4, 1), nn.Upsample(scale_factor=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.up(self.down(self.first(x)))


def test_a_size_that_the_net_cannot_take_is_told_with_sizes_that_it_can() -> None:
    frames = torch.randn(20, 3, 34, 50)
    message = r"fails on frames of 34 × 50 \(The size of tensor .*\); it runs on 32 × 48, 32 × 64, 64 × 64: resize"
    with pytest.raises(ConfigError, match=message):
        compare(Halving().eval(), frames, **COMMON)


def test_a_constant_output_is_told() -> None:
    net = network()
    with torch.no_grad():
        net[3].bias.add_(torch.tensor([100.0, 0, 0, 0]))
    found = compare(net, film(20), ["W8A8"], **COMMON)
    assert any("predicts one and the same value everywhere" in note for note in found.notes)
    assert not compare(network(), film(20), ["W8A8"], **COMMON).notes


def test_pixels_that_nobody_normalised_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        compare(network(), (40 * film(20) + 128).clamp(0, 255), ["W8A8"], **COMMON)
    assert "like pixels of 0 ... 255 that nobody normalised" in caplog.text


def test_json_has_no_nan(tmp_path: Path) -> None:
    compare(network(), film(20), SETTINGS, folder=tmp_path, **COMMON)
    values = json.loads((tmp_path / "rows.json").read_text(), parse_constant=lambda name: math.nan)
    assert "NaN" not in (tmp_path / "rows.json").read_text()
    assert [row["setting"] for row in values["rows"]] == [
        "float",
        "W8A8",
        "W8A8→W4A4, T=3",
        "W8A8→W4A{0,4,8}, T=3, τ=0.1",
    ]


def test_a_plan_with_many_overrides_has_a_file_name_that_file_systems_take() -> None:
    overrides = {f"backbone.layer{index}.conv": "W6A6->W4A{0,4}" for index in range(60)}
    one = expand([ResQConfig.parse("W8A8->W4A{0,4}", overrides=overrides)])[1]
    other = expand([ResQConfig.parse("W8A8->W4A{0,4}", overrides={**overrides, "backbone.layer59.conv": "W4A4"})])[1]
    assert len(one.slug) < 140
    assert one.slug != other.slug
    assert one.slug.startswith("w8a8-w4a-0-4-t-3-tau-0.1-overrides")
    assert expand(["W8A8->W4A4"])[1].slug == "w8a8-w4a4-t-3"
