"""`search`: the same answer every time, nothing lost when it is killed, and every number measured as by hand."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

import resq_plugin
from resq_plugin import ResQConfig, Target, calibrate, convert, measure_cost, read_plan, search
from resq_plugin.errors import ConfigError, ConversionError, ReportError
from resq_plugin.evaluation import Agreement, evaluate, float_predictions
from resq_plugin.planning import Loop, SearchResult
from resq_plugin.planning.journal import SearchJournal
from resq_plugin.planning.trial import Trials

COMMON: dict[str, Any] = {
    "target": Target(
        weight_bits=(4, 8), activation_bits=(4, 8), thresholds=(0.1,), intervals=(1, 3), references=("running",)
    ),
    "calibration": {"samples": 6, "positions": 200, "recheck": 0},
    "progress": False,
    "points": 2,
}


class Net(nn.Sequential):
    """A foldable batch norm, in-place ReLU, four classes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 4, 1),
        )


def network() -> nn.Module:
    return seeded(Net, 3)


def film(frames: int = 12, seed: int = 0) -> list[Tensor]:
    """Clips of three frames."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, 3, 12, 16, generator=generator)
    video = start + (0.1 * torch.randn(frames, 3, 12, 16, generator=generator)).cumsum(0)
    return list(video.split(3))


@pytest.fixture(scope="module")
def found() -> SearchResult:
    return search(network(), film(), max_drop=3.0, **COMMON)


def test_the_front_goes_from_few_bit_operations_and_much_error_to_the_finest_plan(found: SearchResult) -> None:
    points = found.front
    assert all(a.gbops < b.gbops and a.error > b.error for a, b in itertools.pairwise(points))
    assert points[0].verified is not None
    assert points[-1].verified is not None
    assert points[-1].verified.drop < points[0].verified.drop
    assert {point.config.reference for point in points if point.config.residual} == {"running"}
    assert {point.config.weights for point in points} == {"channel"}
    assert "…" not in found.table(80)
    assert max(map(len, found.table(80).splitlines())) <= 80


def test_the_plan_is_the_cheapest_verified_one_that_loses_no_more(found: SearchResult) -> None:
    fit = [p for p in found.front if p.verified is not None and p.verified.drop <= 3.0]
    assert found.plan.point == min(fit, key=lambda p: p.verified.gbops)  # type: ignore[union-attr]
    assert len(fit) >= 2
    assert f"{found.plan.point.verified.relative:.1%}" in str(found)  # type: ignore[union-attr]


def test_a_verified_plan_is_what_a_user_measures_with_its_configuration(found: SearchResult) -> None:
    config, verified = found.plan.config, found.plan.point.verified
    assert verified is not None
    clips = [list(clip.unsqueeze(1)) for clip in film()]
    net = convert(network(), config)
    calibrate(net, clips[:3])
    held_out = clips[3:]
    predict = lambda scores: scores.argmax(1)  # noqa: E731
    targets = {"agreement": float_predictions(net, held_out, predict)}
    interval = config.interval if config.residual else 1
    result = evaluate(net, held_out, targets, {"agreement": Agreement}, predict=predict, interval=interval)
    cost = measure_cost(net, (1, 3, 12, 16), **result.amortized())
    assert verified.accuracy == verified.agreement == result.mean("agreement")
    assert verified.drop == 100 - verified.accuracy
    assert verified.gbops == cost.bops_per_frame / 1e9
    assert verified.state_megabytes == cost.state_bytes / 1e6 == found.plan.point.state_megabytes
    base = measure_cost(network(), (1, 3, 12, 16), ResQConfig.parse("W8A8")).bops_per_frame
    assert verified.relative == cost.bops_per_frame / base


def test_state_is_limited_by_fewer_bits_and_by_layers_that_keep_nothing() -> None:
    options = COMMON | {"target": dataclasses.replace(COMMON["target"], intervals=(3,), stateless=True), "points": 1}
    state = {"reference_bits": 8, "output_bits": 8}
    found = search(network(), film(), max_state_mb=0.003, state=state, **options)
    config, point = found.plan.config, found.plan.point
    assert config.state.output_bits == 8
    assert config.state.stateless
    assert config.residual is not None
    assert point.verified.state_megabytes == point.state_megabytes <= 0.003
    assert measure_cost(network(), (1, 3, 12, 16), config).state_bytes == point.state_megabytes * 1e6 > 0


def test_the_same_seed_gives_the_same_answer_and_the_model_is_given_back(found: SearchResult) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    again = search(net, film(), max_drop=3.0, **COMMON)
    assert again.front == found.front
    assert again.plan == found.plan
    assert type(net[0]) is nn.Conv2d
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    other = search(net, film(), max_drop=3.0, seed=1, **COMMON)
    assert [p.error for p in other.front] != [p.error for p in found.front]


def test_a_killed_search_goes_on(found: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = Trials._measure, []

    def killed(self: Trials, config: ResQConfig) -> Any:
        calls.append(config)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, config)

    monkeypatch.setattr(Trials, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        search(network(), film(), max_drop=3.0, folder=tmp_path, **COMMON)
    journal = tmp_path / "search.jsonl"
    assert journal.read_text().count('"key": "trial') == 2
    with journal.open("a") as file:
        file.write('{"key": "trial cut')  # the machine went down while a line was written
    again = search(network(), film(), max_drop=3.0, folder=tmp_path, **COMMON)
    assert again.front == found.front
    done = len(calls)
    assert done == 3 + sum(point.verified is not None for point in found.front) - 2
    monkeypatch.setattr("resq_plugin.planning.measuring.observe", None)  # nothing is looked at twice
    assert search(network(), film(), max_drop=3.0, folder=tmp_path, **COMMON).front == found.front
    assert len(calls) == done
    journal.write_text("no journal\n")
    with pytest.raises(ReportError, match="holds no records of a search"):
        search(network(), film(), max_drop=3.0, folder=tmp_path, **COMMON)


def test_a_changed_search_starts_anew_and_the_earlier_one_is_kept_and_taken_up_again(
    found: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search(network(), film(), max_drop=3.0, folder=tmp_path, **COMMON)
    (tmp_path / "mine.txt").write_text("of the user")
    (tmp_path / "plan.json").write_text("edited")
    first = contents(tmp_path)
    changed = {**COMMON, "target": dataclasses.replace(COMMON["target"], weight_bits=(8,))}
    other = search(network(), film(), max_drop=3.0, folder=tmp_path, **changed)
    assert other.front == search(network(), film(), max_drop=3.0, **changed).front  # nothing was reused
    (earlier,) = tmp_path.glob("earlier-*")
    assert f"they are in {earlier} now" in caplog.text
    assert contents(earlier) == {name: text for name, text in first.items() if name != "mine.txt"}
    assert contents(tmp_path)["mine.txt"] == "of the user"
    second = contents(tmp_path)
    monkeypatch.setattr("resq_plugin.planning.measuring.observe", None)
    monkeypatch.setattr(Trials, "_measure", None)
    assert search(network(), film(), max_drop=3.0, folder=tmp_path, **COMMON).front == found.front
    assert not earlier.exists()
    (earlier,) = tmp_path.glob("earlier-*")
    assert contents(earlier) == {name: text for name, text in second.items() if name != "mine.txt"}


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.iterdir()) if file.is_file()}


def test_a_search_whose_folder_another_one_took_says_so(tmp_path: Path) -> None:
    """GIVEN two processes, THEN no record of one gets among those of the other."""
    first = SearchJournal(tmp_path, "a")
    first.add("x", 1)
    second = SearchJournal(tmp_path, "b")
    second.add("x", 2)
    with pytest.raises(ReportError, match=r"was moved by another search .* give each a folder of its own"):
        first.add("y", 3)
    assert SearchJournal(tmp_path, "b").records == {"x": 2}
    assert SearchJournal(tmp_path, "a").records == {"x": 1}


def test_a_journal_whose_first_line_was_cut_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "search.jsonl").write_text('{"sear')
    SearchJournal(tmp_path, "a").add("x", 1)
    assert SearchJournal(tmp_path, "a").records == {"x": 1}
    assert not list(tmp_path.glob("earlier-*"))


def test_a_plan_is_a_file_that_is_read_edited_and_converted_with(found: SearchResult, tmp_path: Path) -> None:
    plan = found.plan
    path = found.save(tmp_path)
    assert path == tmp_path / "plan.json"
    assert read_plan(path) == plan.config
    assert json.loads((tmp_path / "front.json").read_text())["front"] == json.loads(json.dumps(found.rows()))
    values = json.loads(path.read_text())
    assert [layer["name"] for layer in values["layers"]] == ["0", "3", "5"]
    assert all(layer["reason"] for layer in values["layers"])
    assert sum(layer["bops_share"] for layer in values["layers"]) == pytest.approx(1)
    assert sum(layer["error_share"] for layer in values["layers"]) == pytest.approx(1)
    values["config"]["overrides"]["5"] = "W8A8->W8A8"
    path.write_text(json.dumps(values))
    net = convert(network(), read_plan(path))
    assert str(net[5].settings.residual) == "W8A8"
    for layer in plan.layers[:2]:
        settings = net[int(layer.name)].settings
        assert (settings.keyframe, settings.residual) == (layer.choice.keyframe, layer.choice.residual)
        if layer.choice.threshold is not None:
            assert settings.config.policy.threshold_of(layer.name) == layer.choice.threshold
    values["config"]["overrides"] = {"5": "W8"}
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"plan.json: cannot read the precision 'W8'"):
        read_plan(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no plan"):
        read_plan(path)
    with pytest.raises(ConfigError, match="names no kind of plan"):
        plan.save(tmp_path / "plan.txt")


def test_the_fragment_of_a_plan_is_the_configuration(found: SearchResult, tmp_path: Path) -> None:
    path = found.plan.save(tmp_path / "plan.py")
    values: dict[str, Any] = {}
    exec(compile(path.read_text(), path.name, "exec"), values)
    assert ResQConfig.from_dict(values["resq"]) == found.plan.config
    assert {key for key in values if not key.startswith("_")} == {"resq"}  # a base may repeat no key of another


def test_the_front_and_the_plan_are_drawn(found: SearchResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    paths = found.plot(tmp_path)
    assert [path.name for path in paths] == ["front.png", "plan.png"]
    for path in paths:
        assert len(image.open(path).convert("L").getcolors(256)) > 20
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in found.plot(tmp_path)] == before


def test_the_most_accurate_plan_within_bit_operations(found: SearchResult) -> None:
    limit = found.front[len(found.front) // 2].gbops
    result = search(network(), film(), max_gbops=limit, **COMMON)
    plan = result.plan.point.verified
    assert plan is not None
    assert plan.gbops <= limit
    for point in result.front:
        if point.verified is not None and point.verified.gbops <= limit:
            assert plan.divergence <= point.verified.divergence


def test_what_cannot_be_had_is_told_with_the_nearest(tmp_path: Path) -> None:
    result = search(network(), film(), max_drop=0.0, max_gbops=1e-9, folder=tmp_path, **COMMON)
    assert len(json.loads((tmp_path / "front.json").read_text())["front"]) == len(result.front)
    assert not (tmp_path / "plan.json").exists()
    with pytest.raises(ConfigError, match=r"no plan does what was asked \(max_drop=0, max_gbops=1e-09\)"):
        _ = result.plan
    assert "no plan does what was asked" in str(result)
    assert result.front[-1].verified is not None


def test_labels_are_what_counts_where_there_are_some() -> None:
    labels = [[torch.randint(4, (1, 12, 16), generator=torch.Generator().manual_seed(1)), None, None]]
    result = search(network(), film(), max_drop=50.0, labels=labels, **COMMON)
    assert result.metric == "mIoU"
    assert result.float_accuracy < 60
    assert result.plan.point.verified.accuracy != result.plan.point.verified.agreement  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"there are \[1\] labels for held-out clips of \[3\] frames"):
        search(network(), film(), max_drop=1.0, labels=[[None]], **COMMON)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_drop": None}, "say what is asked: max_drop=0.5"),
        ({"max_drop": -1}, "max_drop=-1 is not allowed"),
        ({"held_out": 1.5}, "held_out=1.5 is not allowed"),
        ({"held_out": []}, r"held_out=\[\] has no clip"),
        ({"interval": 3}, r"search finds interval itself, so interval=3 cannot be given; say which T may be: target="),
        ({"policy": {}}, "search finds policy itself"),
        ({"wieghts": "channel"}, "unknown setting wieghts. Did you mean 'weights'?"),
        ({"criterion": "mse"}, "criterion='mse' is not allowed; write 'kl'"),
        ({"target": {"weigth_bits": (4,)}}, "unknown setting target.weigth_bits. Did you mean 'weight_bits'?"),
        ({"target": {"weight_bits": ()}}, r"target.weight_bits=\(\) must be a list of at least one"),
        ({"target": {"pools": 1}}, "target.pools=1 is not allowed; write True or False"),
        ({"target": {"references": ("x",)}}, "target.references names 'x'; allowed are"),
        ({"target": {"intervals": (0,)}}, "target.intervals names 0"),
        ({"target": {"intervals": (9,)}}, r"target.intervals=\(9,\) are all longer than the clips"),
        ({"target": {"thresholds": (-1,)}}, "policy.threshold=-1 is not allowed"),
        ({"target": {"weight_bits": (8,), "activation_bits": (4,)}}, "target.weight_bits=.* all exceed"),
        ({"target": {"residuals": ("W4A{0,4}",), "pools": False}}, r"names the pool W4A\{0,4\}, but pools=False"),
        ({"target": {"keyframes": ("W99A8",)}}, "99 bits"),
    ],
)
def test_impossible_wishes_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(network(), film(), **{"max_drop": 1.0, **COMMON, **changes})


def test_a_converted_model_and_no_clip_are_told() -> None:
    net = convert(network(), "W8A8")
    with pytest.raises(ConversionError, match=r"call resq_plugin.revert\(model\)"):
        search(net, film(), max_drop=1.0, **COMMON)
    with pytest.raises(ConfigError, match="search got no clip"):
        search(network(), [], max_drop=1.0, **COMMON)


def test_intervals_that_are_too_long_are_left_out_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    target = {"weight_bits": (8,), "activation_bits": (8,), "intervals": (1, 2, 8), "pools": False}
    with caplog.at_level(logging.WARNING):
        result = search(network(), film(), max_drop=100, **{**COMMON, "target": target})
    assert "T = [8] is longer than the clips (3 frames)" in caplog.text
    assert {point.config.interval for point in result.front} <= {1, 2}
    assert "search" in dir(resq_plugin)


def test_what_the_target_lacks_is_not_in_a_plan() -> None:
    htp = Target(weight_bits=(4, 8), activation_bits=(8, 16), pools=False, intervals=(3,), weights=("tensor",))
    result = search(network(), film(), max_drop=100, **{**COMMON, "target": htp})
    for point in result.front:
        sides = [side for name in "035" for side in point.config.precision_of(name) if side]
        assert {side.weight for side in sides} <= {4, 8}
        assert {bits for side in sides for bits in side.pool} <= {8, 16}
        assert not any(side.is_dynamic for side in sides)
        assert point.config.weights == "tensor"


def test_layers_in_float_count_as_such_before_and_after_they_are_measured() -> None:
    static = {
        "weight_bits": (8,),
        "activation_bits": (4, 8),
        "pools": False,
        "intervals": (3,),
        "weights": ("tensor",),
    }
    result = search(network(), film(), max_drop=100, exclude=("3",), **{**COMMON, "target": static})
    measured = [point for point in result.front if point.verified is not None]
    assert measured
    for point in measured:
        assert point.gbops == pytest.approx(point.verified.gbops)  # type: ignore[union-attr]
        assert point.relative == pytest.approx(point.verified.relative)  # type: ignore[union-attr]
        assert point.gbops > 32 * 32 * 8 * 8 * 9 * 12 * 16 / 1e9  # the layer in float alone


class Branches(nn.Module):
    """Two layers that read one tensor, and one that no frame reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.head, self.unused = nn.Conv2d(4, 4, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head((self.left(x) + self.right(x)).relu())
        return scores


def test_layers_that_share_an_input_get_the_same_precision_if_the_target_says_so() -> None:
    target = {"weight_bits": (4, 8), "activation_bits": (4, 8), "pools": False, "intervals": (3,)}
    different = set()
    for shared in (False, True):
        settings = {**COMMON, "target": {**target, "shared_inputs": shared, "references": ("float",)}}
        result = search(seeded(Branches), film(), max_drop=100, **settings)
        pairs = [(p.config.precision_of("left"), p.config.precision_of("right")) for p in result.front]
        different |= {shared for one, other in pairs if one != other}
        assert all(point.config.exclude == ("unused",) for point in result.front)
    assert different == {False}


class Blend(nn.Module):
    """Two inputs, or with one a state that is kept between frames."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.state: Tensor | None = None

    def forward(self, frame: Tensor, before: Tensor | None = None) -> Tensor:
        hidden = self.encode(frame).relu()
        before = self.state if before is None else before
        self.state = hidden
        scores: Tensor = self.decode(hidden if before is None else hidden + 0.5 * before)
        return scores


def test_frames_may_be_whatever_runs_them(found: SearchResult) -> None:
    net = network()
    steps = [[{"image": frame} for frame in clip.unsqueeze(1)] for clip in film()]
    again = search(net, steps, max_drop=3.0, run=lambda step: net(step["image"]), **COMMON)
    assert again.front == found.front
    assert again.plan == found.plan


def test_a_state_is_a_part_of_the_frame() -> None:
    net = seeded(Blend)
    with torch.no_grad():
        states = [torch.zeros(1, 8, 12, 16), *[net.encode(frame).relu() for frame in torch.cat(film())[:, None]]]
    frames = list(torch.cat(film())[:, None])
    steps = list(zip(frames, states, strict=False))
    clips = [steps[start : start + 3] for start in range(0, 12, 3)]
    result = search(net, clips, max_drop=5.0, run=lambda step: net(*step), **COMMON)
    assert {layer.name for layer in result.plan.layers} == {"encode", "decode"}
    verified = result.plan.point.verified
    assert verified is not None
    net.state = None
    convert(net, result.plan.config)
    run = lambda step: net(*step)  # noqa: E731
    calibrate(net, clips[:3], run=run)
    predict = lambda scores: scores.argmax(1)  # noqa: E731
    targets = {"agreement": float_predictions(net, clips[3:], predict, run=run)}
    interval = result.plan.config.interval if result.plan.config.residual else 1
    measured = evaluate(net, clips[3:], targets, {"agreement": Agreement}, predict=predict, interval=interval, run=run)
    assert measured.mean("agreement") == verified.agreement


class Recurrent:
    """Blend as its user runs it: what it remembers is a part of each frame; the first frame is given."""

    def __init__(self, net: Blend) -> None:
        self.net = net
        self.reset()

    def reset(self) -> None:
        self.before: Tensor | None = None

    def __call__(self, frame: Tensor) -> Tensor:
        if self.before is None:
            self.before = torch.zeros(1, 4, 12, 16)
            return self.before
        blended = frame + self.before.tanh().mean(1, keepdim=True)
        scores: Tensor = self.net(blended, torch.zeros(1, 8, 12, 16))
        self.before = scores
        return scores


def steps_of(net: Blend, clips: list[Tensor]) -> list[list[tuple[Tensor, Tensor]]]:
    """Recorded steps of a float run, each with the state it read."""
    return [[(frame, torch.zeros(1, 8, 12, 16)) for frame in clip.unsqueeze(1)] for clip in clips]


def test_plans_are_verified_on_whole_videos_whose_errors_go_from_frame_to_frame() -> None:
    net = seeded(Blend)
    video = [list(torch.cat(film(9, seed=5))[:, None])]
    loop = Recurrent(net)
    whole = Loop(loop, loop.reset, given=1)
    step: Any = lambda step: net(*step)  # noqa: E731
    clips = steps_of(net, film())
    result = search(net, clips, max_drop=4.0, held_out=video, run=step, loop=whole, **COMMON)
    point = result.plan.point
    assert point.verified is not None
    predict = lambda scores: scores.argmax(1)  # noqa: E731
    playing: dict[str, Any] = {"run": loop, "start": loop.reset}
    targets = {"agreement": float_predictions(net, video, predict, **playing)}
    convert(net, point.config)
    calibrate(net, clips, run=step)
    interval = point.config.interval if point.config.residual else 1
    settings = {"predict": predict, "interval": interval, "given": 1, **playing}
    measured = evaluate(net, video, targets, {"agreement": Agreement}, **settings)
    assert point.verified.accuracy == point.verified.agreement == measured.mean("agreement")
    cost = measure_cost(net, (1, 3, 12, 16), **measured.amortized())
    assert point.verified.gbops == cost.bops_per_frame / 1e9
    assert point.verified.divergence > 0  # type: ignore[operator]


def test_a_loop_may_return_labels_alone_and_labels_of_given_frames_do_not_count(tmp_path: Path) -> None:
    net = seeded(Blend)
    loop = Recurrent(net)
    frames = list(torch.cat(film(5, seed=5))[:, None])
    whole = Loop(lambda frame: loop(frame).argmax(1), loop.reset, given=1)
    with torch.no_grad():
        whole.start()
        right: list[Tensor | None] = [whole.run(frame) for frame in frames]
    right[0] = torch.full((1, 12, 16), 3)  # wrong, and given
    options: dict[str, Any] = {
        **COMMON,
        "held_out": [frames],
        "run": lambda step: net(*step),
        "criterion": "kl",
        "metric": ("agreement", Agreement),
    }
    result = search(net, steps_of(net, film()), max_gbops=1.0, labels=[right], loop=whole, folder=tmp_path, **options)
    assert result.float_accuracy == 100
    known = [point.verified for point in result.front if point.verified is not None]
    assert {found.divergence for found in known} == {None}
    assert result.plan.point.verified.drop == min(found.drop for found in known)  # type: ignore[union-attr]
    result.report(tmp_path)
    assert "NaN" not in (tmp_path / "front.json").read_text()


def test_a_loop_without_given_frames_takes_no_records_of_clips(tmp_path: Path) -> None:
    """GIVEN the same clips and frames, verified step by step and then as whole videos."""
    net = seeded(Blend)
    steps = steps_of(net, film())
    options: dict[str, Any] = {**COMMON, "max_drop": 100.0, "held_out": steps[3:], "run": lambda step: net(*step)}
    search(net, steps[:3], folder=tmp_path, **options)
    (before,) = {json.loads(line)["search"] for line in (tmp_path / "search.jsonl").read_text().splitlines()[:1]}
    loop = Recurrent(net)
    loop.before = torch.zeros(1, 4, 12, 16)
    search(net, steps[:3], folder=tmp_path, loop=Loop(lambda step: loop(step[0]), lambda: None), **options)
    (after,) = {json.loads(line)["search"] for line in (tmp_path / "search.jsonl").read_text().splitlines()[:1]}
    assert before != after


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (0.25, r"held_out=0.25 is a share of recorded steps, but loop=... runs whole videos; pass held_out=\[video"),
        ([[torch.zeros(1, 3, 12, 16)]], r"the held-out videos have \[1\] frames; each needs more than the 1 that are"),
    ],
)
def test_held_out_videos_of_a_loop_must_be_some(held_out: Any, message: str) -> None:
    net = seeded(Blend)
    loop = Recurrent(net)
    options: dict[str, Any] = {**COMMON, "run": lambda step: net(*step), "loop": Loop(loop, loop.reset, given=1)}
    with pytest.raises(ConfigError, match=message):
        search(net, steps_of(net, film()), max_drop=1.0, held_out=held_out, **options)


def test_a_state_that_is_kept_between_frames_is_told_and_so_are_frames_that_nothing_runs() -> None:
    net = seeded(Blend)
    with pytest.raises(ConfigError, match=r"depends on a state .* run=lambda step: model\(\*step\)"):
        search(net, film(), max_drop=5.0, run=net, **COMMON)
    clips = [[(frame, frame) for frame in clip.unsqueeze(1)] for clip in film()]
    with pytest.raises(ConfigError, match=r"search takes frames .* or with run="):
        search(network(), clips, max_drop=5.0, **COMMON)


def test_the_page_has_the_sentence_the_measured_plans_the_front_and_the_plan(
    found: SearchResult, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    page = found.report(tmp_path, title="My net").read_text(encoding="utf-8")
    assert "<h1>My net</h1>" in page
    assert found.finding in page
    assert page.count("<picture>") == 2
    assert page.count('class="first"') >= 2
    measured = [point for point in found.front if point.verified is not None]
    table = page.partition("<tbody>")[2].partition("</tbody>")[0]
    assert table.count("<tr") == 1 + len(measured)
    for point in measured:
        assert f"{100 - 100 * point.verified.relative:.1f}" in table  # type: ignore[union-attr]
    for layer in found.plan.layers:
        assert f"<td>{layer.name}</td><td>{str(layer.choice).replace('->', '→')}</td>" in page
    assert "max_drop=3" in page
    none = search(network(), film(), max_drop=0.0, max_gbops=1e-9, **COMMON)
    page = none.report(tmp_path).read_text(encoding="utf-8")
    assert "no plan does what was asked" in page
    assert page.count("<picture>") == 1
