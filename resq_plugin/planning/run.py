"""`search`: from a float model, clips and a wish to a plan per layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from resq_plugin.calibration import Clip, fingerprint, split_clip
from resq_plugin.comparison import default_predict, first_output
from resq_plugin.config import ResQConfig, StateConfig
from resq_plugin.conversion import evaluating
from resq_plugin.cost import FLOAT_BITS, dry_run
from resq_plugin.errors import ConfigError, ConversionError
from resq_plugin.evaluation import Agreement, MeanIoU, Metric
from resq_plugin.method import ResidualLayer
from resq_plugin.planning.choosing import verify_front
from resq_plugin.planning.inputs import Loop, check_common, check_labels, possible_intervals, split_clips
from resq_plugin.planning.journal import SearchJournal
from resq_plugin.planning.measuring import Measured, measure
from resq_plugin.planning.observe import score_tensor
from resq_plugin.planning.optimize import Assignment, pareto, sweep
from resq_plugin.planning.options import Option, menu_at, works_of
from resq_plugin.planning.plan import Plan, Point, config_of, explain
from resq_plugin.planning.result import Goal, SearchResult
from resq_plugin.planning.target import Target
from resq_plugin.planning.trial import Trials

__all__ = ["search"]

PLANS = 48
"""Plans of the front that are kept, evenly spaced over the logarithm of bit operations."""

Predict = Callable[[Any], Tensor]


def search(
    model: nn.Module,
    clips: Sequence[Clip],
    *,
    max_drop: float | None = None,
    max_gbops: float | None = None,
    max_state_mb: float | None = None,
    target: Target | Mapping[str, Any] | None = None,
    held_out: float | Sequence[Clip] = 0.25,
    labels: Sequence[Sequence[Tensor | None]] | None = None,
    metric: tuple[str, Callable[[], Metric]] | None = None,
    predict: Predict | None = None,
    agreement: Callable[[], Metric] = Agreement,
    run: Callable[[Any], Any] | None = None,
    loop: Loop | None = None,
    arguments: Sequence[Any] = (),
    criterion: str | None = None,
    points: int = 6,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
    **common: Any,
) -> SearchResult:
    """Find per layer the fewest bits that keep the accuracy: precisions, pools, τ, and T, reference, grid, scales.

    Every choice of every layer is run on windows of a float run and weighed with random gradients of the output
    (second-order KL divergence to float). The Pareto front of the sum over layers is walked exactly; plans on it are
    then converted, calibrated and measured on held-out frames until the cheapest that does what is asked is known.
    No label is needed, and no full evaluation per choice. docs/search.md tells more.

    Args:
        model: a float model in evaluation mode; ``model(frame)`` returns class scores (N, K, ...) or values, of which
            gradients flow to its layers.
        clips: consecutive frames, as for `calibrate`; ranges and sensitivities come from them.
        max_drop: points of accuracy that may be lost on the held-out frames, e.g. 0.5.
        max_gbops: bit operations per frame.
        max_state_mb: megabytes kept between frames.
        target: what the hardware has; everything unless given.
        held_out: clips that verify plans; or a share of the last clips (of the frames, where there is one clip).
        labels: per held-out clip and frame what is right, or None; agreement with float unless given.
        metric: name and maker of the metric of the labels; mean IoU over the channels of the output unless given.
        predict: model output to what is compared, such as labels (N, H, W); the highest channel unless given.
        agreement: maker of the metric of predictions against those of the float model, in percent.
        run: what runs one frame, when it is not ``model(frame)``. A frame is then any pytree with its image, such as
            (frame, masks, what was remembered), recorded of a float run: each is run on its own.
        loop: what runs whole held-out videos, where errors go from frame to frame through what is remembered; a
            `Loop`. ``predict``, ``labels`` and ``metric`` are then of what it returns.
        arguments: of the model behind the frame, for its bit operations, such as a number of objects.
        criterion: ``kl`` (class scores) or ``squared`` (values such as heat maps); kl where ``predict`` is not given.
        points: plans spread over the front that are measured beside those that the wish needs.
        seed: of places and scores that are drawn.
        folder: where everything measured is kept as it is measured; a killed search goes on there. Results of a search
            of another model, target or other clips go to ``earlier-MARK`` in it, from where they are taken up again.
        progress: show a progress bar.
        common: further fields of `ResQConfig`, e.g. ``exclude=("head.*",)`` or ``calibration={"samples": 32}``.

    Returns:
        A `SearchResult`: the front, and ``.plan``.

    Raises:
        ConfigError: wishes, target, clips or frames that cannot be used.
        ConversionError: the model is converted already, or has nothing to convert.
        ReportError: the folder cannot be written, or another search takes it meanwhile.
    """
    if any(isinstance(module, ResidualLayer) for module in model.modules()):
        msg = "search takes the float model; call resq_plugin.revert(model) before it."
        raise ConversionError(msg)
    goal = Goal(max_drop, max_gbops, max_state_mb)
    target = target if isinstance(target, Target) else Target.from_dict(target or {})
    check_common(common)
    device = next((parameter.device for parameter in model.parameters()), None)
    measured, verifying = split_clips(clips, held_out, device, pytrees=run is not None, loop=loop)
    given = 0 if loop is None else loop.given
    intervals = possible_intervals(target, measured, [video[given:] for video in verifying])
    frame = measured[0][0] if loop else verifying[0][0]
    output = first_output(model, frame, run)
    scores = score_tensor(output)
    if loop is not None:
        loop.start()
        output = first_output(model, verifying[0][0], loop.run)
    criterion = criterion or ("kl" if predict is None and scores.dim() > 1 and scores.shape[1] > 1 else "squared")
    if criterion not in ("kl", "squared"):
        msg = f"criterion={criterion!r} is not allowed; write 'kl' (class scores) or 'squared' (values)."
        raise ConfigError(msg)
    predict = predict or default_predict(output)
    name, make = ("agreement", agreement)
    if labels is not None:
        check_labels(labels, verifying)
        name, make = metric or ("mIoU", lambda: MeanIoU(scores.shape[1]))
    seen = enumerate(tree_leaves([measured, verifying, labels]))
    mark = fingerprint(
        [*model.state_dict().items(), *((f"clips {index}", leaf) for index, leaf in seen)],
        clips=[[len(clip) for clip in part] for part in (measured, verifying)],
        target=target.to_dict(),
        criterion=criterion,
        seed=seed,
        metric=name,
        common=common,
        given=None if loop is None else given,
    )
    journal = SearchJournal(None if folder is None else Path(folder), mark)
    with evaluating(model), tqdm(unit="step", disable=not progress, dynamic_ncols=True) as bar:
        pieces = [piece for clip in measured for piece in split_clip(clip, max(intervals))]
        pieces = [piece for piece in pieces if len(piece) == max(map(len, pieces))]
        study = measure(model, pieces, run, target, intervals, criterion, seed, journal, bar, common)
        trials = Trials(
            *(model, measured, verifying, run, loop, arguments, labels, predict, make, agreement, criterion, journal),
            bar.update,
        )
        candidates = _candidates(model, study, target, intervals, goal, trials, scores, criterion, common)
        points_found = verify_front([point for point, _ in candidates], goal, trials, points, bar)
    plans = {json.dumps(point.config.to_dict(), sort_keys=True): plan for point, plan in candidates}
    works = works_of(dry_run(model, trials.shape, trials.arguments).calls, _state(common))

    def planned(point: Point) -> Plan:
        assignment = plans[json.dumps(point.config.to_dict(), sort_keys=True)]
        menus = {
            layer: menu_at(menu, works[layer], target, assignment.interval, assignment.reference)
            for layer, menu in study.menus[assignment.reference].items()
        }
        return Plan(point, explain(assignment, menus))

    result = SearchResult(tuple(points_found), goal, name, trials.float_accuracy, planned, study.notes)
    if folder is not None:
        result.save_front(folder)
        if goal.best(result.front) is not None:
            result.save(folder)
    return result


def _candidates(
    model: nn.Module,
    study: Measured,
    target: Target,
    intervals: Sequence[int],
    goal: Goal,
    trials: Trials,
    scores: Tensor,
    criterion: str,
    common: Mapping[str, Any],
) -> list[tuple[Point, Assignment]]:
    """The front over all references and T, and the configuration of each plan."""
    works = works_of(dry_run(model, trials.shape, trials.arguments).calls, _state(common))
    tried = next(iter(study.menus.values()))
    in_float = FLOAT_BITS**2 * sum(work.macs for name, work in works.items() if name not in tried)
    plans: list[Assignment] = []
    for reference, menus in study.menus.items():
        for interval in intervals:
            if interval == 1 and reference != next(iter(study.menus)):
                continue
            options = {name: menu_at(menu, works[name], target, interval, reference) for name, menu in menus.items()}
            for price in _prices(options, goal):
                plans += sweep(options, groups=study.groups, price=price, interval=interval, reference=reference)
    if goal.max_state_mb is not None:
        fit = [plan for plan in plans if plan.state <= goal.max_state_mb * 1e6]
        if not fit:
            least = min(plan.state for plan in plans) / 1e6
            msg = f"max_state_mb={goal.max_state_mb:g} is less than any plan needs ({least:.4g} MB)."
            raise ConfigError(msg)
        plans = fit
    count = scores.numel() // scores.shape[1] if criterion == "kl" else scores.numel()
    settings = {
        **common,
        "weights": study.weights,
        "keyframe_grid": study.grid,
        "policy": {"granularity": target.granularity, "region": target.region},
        "exclude": (*common.get("exclude", ()), *study.unreached),
    }
    return [
        (
            Point(
                config_of(plan, settings),
                plan.error / count,
                (plan.bops + in_float) / 1e9,
                (plan.bops + in_float) / trials.base,
                plan.state / 1e6,
            ),
            plan,
        )
        for plan in pareto(plans, PLANS)
    ]


def _prices(options: Mapping[str, Sequence[Option]], goal: Goal) -> tuple[float, ...]:
    """What a byte of state is worth in bit operations; some prices where state is limited."""
    if goal.max_state_mb is None:
        return (0.0,)
    bops = sum(max(option.bops for option in menu) for menu in options.values())
    state = max(sum(max(option.state for option in menu) for menu in options.values()), 1)
    return (0.0, *(bops / state * 4.0**power for power in range(-6, 5)))


def _state(common: Mapping[str, Any]) -> StateConfig:
    return ResQConfig.from_dict({"state": common.get("state", {})}).state
