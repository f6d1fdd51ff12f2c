"""The front against all plans, tried one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_plugin import ResQConfig, convert, measure_cost
from resq_plugin.cost import dry_run
from resq_plugin.planning import Choice, Target
from resq_plugin.planning.effects import Effect, distances
from resq_plugin.planning.optimize import Assignment, hull, pareto, sweep
from resq_plugin.planning.options import Option, Work, menu_at, works_of
from resq_plugin.planning.plan import config_of

CHOICES = [Choice.parse(f"W{bits}A{bits}") for bits in range(2, 8)]
NUMBERS = st.integers(0, 20).map(float)
MENUS = st.lists(
    st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 9)), min_size=1, max_size=6), min_size=1, max_size=4
)


def menus_of(values: list[list[tuple[float, float, int]]]) -> dict[str, list[Option]]:
    return {
        str(index): [Option(CHOICES[i], error, bops, state) for i, (error, bops, state) in enumerate(menu)]
        for index, menu in enumerate(values)
    }


@given(MENUS, st.floats(0, 100), st.sampled_from([0.0, 0.5, 3.0]))
def test_for_every_price_of_a_bit_operation_the_best_of_all_plans_is_in_the_sweep(
    values: list[list[tuple[float, float, int]]], factor: float, price: float
) -> None:
    menus = menus_of(values)
    found = sweep(menus, price=price)
    every = itertools.product(*menus.values())
    best = min(sum(o.error + factor * (o.bops + price * o.state) for o in plan) for plan in every)
    ours = min(plan.error + factor * (plan.bops + price * plan.state) for plan in found)
    assert ours == pytest.approx(best, abs=1e-9)
    for plan in found:  # sums are those of the choices
        chosen = [next(o for o in menus[name] if o.choice == choice) for name, choice in plan.choices.items()]
        assert plan.error == pytest.approx(sum(o.error for o in chosen))
        assert plan.bops == pytest.approx(sum(o.bops for o in chosen))
        assert plan.state == sum(o.state for o in chosen)


@given(MENUS)
def test_a_sweep_goes_from_the_smallest_error_to_the_fewest_bit_operations(
    values: list[list[tuple[float, float, int]]],
) -> None:
    menus = menus_of(values)
    found = sweep(menus)
    assert found[0].error == pytest.approx(sum(min(o.error for o in menu) for menu in menus.values()))
    assert found[-1].bops == pytest.approx(sum(min(o.bops for o in menu) for menu in menus.values()))
    assert all(a.bops > b.bops and a.error < b.error for a, b in itertools.pairwise(found))


def test_the_hull_of_one_layer_by_hand() -> None:
    #  bops:  10     8 (above the line from 10 to 4)    4       4 (worse)   1
    values = [(0.0, 10.0, 0), (3.0, 8.0, 0), (3.5, 4.0, 0), (5.0, 4.0, 0), (9.0, 1.0, 0)]
    (menu,) = menus_of([values]).values()
    assert [(o.error, o.bops) for o in hull(menu)] == [(0.0, 10.0), (3.5, 4.0), (9.0, 1.0)]


def test_layers_of_a_group_choose_alike() -> None:
    menus = menus_of([[(0, 9, 0), (1, 3, 0)], [(0, 9, 0), (50, 3, 0)], [(0, 9, 0), (2, 3, 0)]])
    alone = {tuple(map(str, plan.choices.values())) for plan in sweep(menus)}
    assert ("W3A3", "W2A2", "W2A2") in alone
    together = sweep(menus, groups=[("0", "1")])
    assert [[str(c) for c in plan.choices.values()] for plan in together] == [
        ["W2A2", "W2A2", "W2A2"],
        ["W2A2", "W2A2", "W3A3"],
        ["W3A3", "W3A3", "W3A3"],
    ]


@given(MENUS, st.integers(1, 5))
def test_no_plan_of_the_front_is_beaten(values: list[list[tuple[float, float, int]]], count: int) -> None:
    plans = [*sweep(menus_of(values)), *sweep(menus_of(values[::-1]), price=1.0)]
    front = pareto(plans)
    for plan in front:
        assert not [o for o in plans if o.bops <= plan.bops and o.error < plan.error - 1e-9]
    some = pareto(plans, count + 1)
    assert len(some) <= max(count + 1, 1) + 1
    assert all(plan in front for plan in some)
    assert some[0] == front[0]


def test_bit_operations_and_state_are_those_of_measure_cost() -> None:
    from helpers import Plain, seeded

    net, shape = seeded(Plain), (1, 3, 12, 16)
    works = works_of(dry_run(net, shape).calls)
    target = Target(weight_bits=(4, 8), activation_bits=(4, 8), thresholds=(0.1,))
    shares = {0: 0.25, 4: 0.75}
    for text, reference in (
        ("W8A8->W4A4", "float"),
        ("W4A8->W8A8", "running"),
        ("W8A8->W4A{0,4} τ=0.1", "quantized"),
    ):
        choice = Choice.parse(text)
        config = ResQConfig.parse(choice.notation, interval=4, reference=reference)
        dynamic = dict.fromkeys(works, shares) if choice.threshold else None
        cost = measure_cost(net, shape, config, shares=dynamic)
        mean = 3.0 if choice.threshold else float(choice.residual.pool[-1])
        bits = (float(choice.keyframe.pool[-1]), mean, mean, mean)
        for layer in cost.layers:
            assert works[layer.name].bops(choice, bits) == pytest.approx(layer.bops_per_frame, rel=1e-12)
            assert works[layer.name].state(choice, reference) == layer.state_bytes
    assert {str(p) for p, _ in target.residual_choices()} >= {"W4A4", "W4A{0,4}", "W8A8"}
    convert(net, "W8A8")


def test_a_pair_errs_like_its_residual_and_what_its_keyframe_adds() -> None:
    target = Target(keyframes=("W4A4", "W8A8"), residuals=("W8A8", "W4A4"))
    menu = {
        "W8A8->W8A8": Effect((1.0, 2.0, 3.0), (8.0, 8.0, 8.0)),
        "W8A8->W4A4": Effect((1.0, 6.0, 8.0), (8.0, 4.0, 4.0)),
        "W4A4->W8A8": Effect((7.0, 8.0, 9.0), (4.0, 8.0, 8.0)),
    }
    options = {str(o.choice): o for o in menu_at(menu, Work(10, 1, 1), target, 3, "float")}
    assert options["W8A8->W4A4"].error == pytest.approx((1 + 6 + 8) / 3)
    assert options["W4A4->W4A4"].error == pytest.approx((1 + 6 + 8) / 3 + (7 + 8 + 9) / 3 - (1 + 2 + 3) / 3)
    assert options["W4A4->W4A4"].bops == 10 * (16 + 16 + 16) / 3
    shorter = {str(o.choice): o for o in menu_at(menu, Work(10, 1, 1), target, 2, "float")}
    assert shorter["W8A8->W4A4"].error == pytest.approx((1 + 6) / 2)
    assert shorter["W8A8->W4A4"].bops == 10 * (64 + 16) / 2


@given(st.integers(1, 300))
def test_distances_hold_the_first_and_the_last(length: int) -> None:
    found = distances(length)
    assert found == sorted(set(found))
    if length > 1:
        assert found[-1] == length - 1
        assert found[0] == 1


def test_a_layer_whose_residuals_do_not_pay_may_keep_nothing() -> None:
    target = Target(keyframes=("W8A8",), residuals=("W8A8", "W4A4"), stateless=True)
    effects = {
        "W8A8->W8A8": Effect((1.0, 2.0, 3.0), (8.0, 8.0, 8.0)),
        "W8A8->W4A4": Effect((1.0, 6.0, 8.0), (8.0, 4.0, 4.0)),
        "W8A8": Effect((1.0, 1.0, 1.0), (8.0, 8.0, 8.0)),
    }
    work = Work(10, 4, 4, {"running": 32})
    options = {str(o.choice): o for o in menu_at(effects, work, target, 3, "running")}
    assert (options["W8A8"].error, options["W8A8"].bops, options["W8A8"].state) == (1.0, 640.0, 0)
    assert options["W8A8->W8A8"].state == 32
    finest, coarsest = sweep({"a": list(options.values()), "b": list(options.values())}, interval=3)[::2]
    assert {str(c) for c in finest.choices.values()} == {"W8A8"}
    plan = Assignment({"a": finest.choices["a"], "b": coarsest.choices["b"]}, 0.0, 0.0, 0, 3, "running")
    config = config_of(plan, {"state": {"output_bits": 8}})
    assert [str(side) for side in config.precision_of("a")] == ["W8A8", "None"]
    assert [str(side) for side in config.precision_of("b")] == ["W8A8", "W4A4"]
    assert config.state.output_bits == 8


@pytest.mark.parametrize("state", [{}, {"reference_bits": 8, "output_bits": 16}])
@pytest.mark.parametrize("reference", ["float", "quantized", "running"])
def test_state_of_every_kind_is_that_of_measure_cost(reference: str, state: dict[str, int]) -> None:
    from helpers import Residual, seeded

    net, shape = seeded(Residual), (1, 3, 24, 32)
    for text in ("W8A8->W4A4", "W8A12->W4A4"):
        config = ResQConfig.parse(text, interval=4, reference=reference, state=state)
        works = works_of(dry_run(net, shape).calls, config.state)
        for layer in measure_cost(net, shape, config).layers:
            assert works[layer.name].state(Choice.parse(text), reference) == layer.state_bytes
