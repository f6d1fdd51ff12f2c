"""The whole Pareto front of a sum: one choice per layer, fewest bit operations for each error.

Errors and bit operations are sums over layers, so for a price λ per bit operation every layer decides on its own, and
the plans that are best for some λ are the lower convex hull of all plans. It is walked from the finest plan to the
coarsest: each step moves one layer along its own hull, in the order of the error that a bit operation saved costs.
Between two steps no plan is better by more than the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resq_plugin.planning.options import Option
from resq_plugin.planning.target import Choice

__all__ = ["Assignment", "hull", "pareto", "sweep"]


@dataclass(frozen=True)
class Assignment:
    """A choice for every layer.

    Attributes:
        choices: by layer.
        error: sum of the layers' errors.
        bops: per frame.
        state: bytes.
        interval: T.
        reference: of residuals.
    """

    choices: Mapping[str, Choice]
    error: float
    bops: float
    state: int
    interval: int = 1
    reference: str = "float"


def hull(options: Sequence[Option], price: float = 0.0) -> list[Option]:
    """The options that are best for some λ, from the smallest error on; each saves less for its error than the last.

    Args:
        options: of one layer.
        price: bit operations that a byte of state counts as.
    """

    def cost(option: Option) -> float:
        return option.bops + price * option.state

    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.error, cost(o), str(o.choice))):
        if best and cost(option) >= cost(best[-1]):
            continue
        while len(best) > 1 and _slope(best[-2], best[-1], cost) >= _slope(best[-1], option, cost):
            best.pop()
        best.append(option)
    return best


def _slope(fine: Option, coarse: Option, cost: Callable[[Option], float]) -> float:
    """Error per bit operation saved."""
    return (coarse.error - fine.error) / (cost(fine) - cost(coarse))


def _joined(menus: Sequence[Sequence[Option]]) -> list[Option]:
    """Options of layers that must choose alike: those that all of them have, summed."""
    tables = [{str(option.choice): option for option in menu} for menu in menus]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    return [
        Option(
            tables[0][key].choice,
            sum(table[key].error for table in tables),
            sum(table[key].bops for table in tables),
            sum(table[key].state for table in tables),
        )
        for key in common
    ]


def sweep(
    menus: Mapping[str, Sequence[Option]],
    *,
    groups: Sequence[Sequence[str]] = (),
    price: float = 0.0,
    interval: int = 1,
    reference: str = "float",
) -> list[Assignment]:
    """Every plan that is best for some λ, from the smallest error on.

    Args:
        menus: options by layer.
        groups: layers that must choose alike; those in none choose alone.
        price: bit operations that a byte of state counts as.
        interval: T that the options are of.
        reference: likewise.
    """
    grouped = {name for group in groups for name in group}
    units = [tuple(group) for group in groups] + [(name,) for name in menus if name not in grouped]
    hulls = [hull(_joined([menus[name] for name in unit]), price) for unit in units]
    places = [0] * len(units)

    def cost(option: Option) -> float:
        return option.bops + price * option.state

    steps = sorted(
        (_slope(path[i], path[i + 1], cost), index, i)
        for index, path in enumerate(hulls)
        for i in range(len(path) - 1)
    )

    def plan() -> Assignment:
        chosen = [path[place] for path, place in zip(hulls, places, strict=True)]
        choices = {name: option.choice for unit, option in zip(units, chosen, strict=True) for name in unit}
        return Assignment(
            {name: choices[name] for name in menus},
            sum(option.error for option in chosen),
            sum(option.bops for option in chosen),
            sum(option.state for option in chosen),
            interval,
            reference,
        )

    found = [plan()]
    for _, index, i in steps:
        places[index] = i + 1
        found.append(plan())
    return found


def pareto(plans: Sequence[Assignment], count: int | None = None) -> list[Assignment]:
    """The plans that no other beats in both error and bit operations, from the fewest bit operations on.

    Args:
        plans: of any interval and reference.
        count: keep so many of them, evenly spaced over the logarithm of bit operations.
    """
    found: list[Assignment] = []
    for plan in sorted(plans, key=lambda p: (p.bops, p.error)):
        if not found or plan.error < found[-1].error:
            found.append(plan)
    if count is None or len(found) <= count:
        return found
    low, high = found[0].bops, found[-1].bops
    wanted = [low * (high / low) ** (index / (count - 1)) for index in range(count)]
    kept = {min(range(len(found)), key=lambda i: (abs(found[i].bops - bops), i)) for bops in wanted}
    return [found[index] for index in sorted(kept)]
