"""Which accelerators to rent for a sum an hour: pools of one or two types, ranked by what they train for the money.

::

    prices, types ──► every pool that the sum pays for ──► the fluid oracle's rate of each ──► the best few, simulated

What a pool costs an hour does not depend on who trains and who rolls out, so a run's policy needs no prices; what is
rented does. A pool has one type that may train, and at most one further type beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlserve.errors import UserError
from rlserve.manager.config import ManagerConfig
from rlserve.manager.policies.base import GangFigures, GangView
from rlserve.manager.roles import Role
from rlserve.roofline.accelerators import is_cpu, is_spot, slot_type
from rlserve.simulate.oracle import Rates, fluid_rate, saturated_rates
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.simulation import simulate
from rlserve.simulate.study import cost_per_million
from rlserve.tracking.cost.prices import Prices


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A pool that could be rented."""

    num_gangs: Mapping[str, int]
    """By type; that which trains is the first."""
    gang_size: int
    money_per_hour: float
    groups_per_s: float
    """By the fluid oracle: no real run trains more."""

    @property
    def name(self) -> str:
        """As people say it: ``8 H100 + 16 H200-spot``."""
        return " + ".join(f"{count * self.gang_size} {name}" for name, count in self.num_gangs.items())

    @property
    def groups_per_money(self) -> float:
        """Prompt groups that a unit of money trains."""
        return 3600 * self.groups_per_s / self.money_per_hour


@dataclass(frozen=True, kw_only=True)
class TriedOffer:
    """One that was simulated."""

    offer: Offer
    tokens_per_s: float
    """Trained, prompts included."""
    cost_per_million: float
    """Trained tokens, in money."""


def find_offers(
    scenario: Scenario, prices: Prices, *, money_per_hour: float, types: Sequence[str] = ()
) -> tuple[Offer, ...]:
    """The pool of each choice of types that trains most, the one that trains most for its money first.

    Args:
        scenario: what is trained, and its costs; its gangs are not looked at but for their size.
        prices: of the types; a type without a price is not for rent.
        money_per_hour: the most that a pool may cost.
        types: those to choose from; empty takes all GPUs that have a price.

    Raises:
        UserError: a type has no price, or the sum does not pay for two gangs.
    """
    size = scenario.gangs[0].num_slots
    names = tuple(types) or tuple(name for name in prices.per_hour if not is_cpu(name))
    for name in names:
        if not prices.of(name):
            raise UserError(f"{name} has no price above 0 in cost.prices, which names {', '.join(prices.per_hour)}")
    money = {name: size * (prices.of(name) or 0.0) for name in names}
    rates = saturated_rates(replace(scenario, gangs=make_gangs(dict.fromkeys(names, 2), size), zones=()))
    best: dict[tuple[str, ...], Offer] = {}
    for counts in affordable(money, money_per_hour):
        offer = Offer(
            num_gangs=counts,
            gang_size=size,
            money_per_hour=sum(count * money[name] for name, count in counts.items()),
            groups_per_s=_rate(scenario, rates, counts, size),
        )
        key = tuple(counts)
        if key not in best or offer.groups_per_s > best[key].groups_per_s:
            best[key] = offer
    if not best:
        raise UserError(
            f"{money_per_hour:g} {prices.currency} an hour do not pay for two gangs of {size} of "
            f"{', '.join(names)}, one of which is not on a spot machine"
        )
    return tuple(sorted(best.values(), key=lambda offer: offer.groups_per_money, reverse=True))


def affordable(money: Mapping[str, float], most: float) -> Iterator[Mapping[str, int]]:
    """Pools of a type that trains and at most one other, for ``money`` an hour and gang: with each number of the first,
    as many of the other as are paid for."""
    for trains in (name for name in money if not is_spot(name)):
        for num_train in range(1, int(most / money[trains] + 1e-9) + 1):
            left = most - num_train * money[trains]
            if num_train >= 2:
                yield {trains: num_train}
            for other in money:
                num_other = int(left / money[other] + 1e-9)
                if other != trains and num_other:
                    yield {trains: num_train, other: num_other}


def make_gangs(counts: Mapping[str, int], size: int) -> tuple[GangView, ...]:
    """Gangs of these types; with a second one, it is for rollout first."""
    names = list(counts)
    return tuple(
        GangView(
            id=f"{name}/{number}",
            type=name,
            num_slots=size,
            figures=GangFigures(
                memory_bandwidth_gb_s=slot_type(name).memory_bandwidth_gb_s, flops_tflops=slot_type(name).flops_tflops
            ),
            prefer=Role.ROLLOUT if name != names[0] else None,
            may_train=not is_spot(name),
        )
        for name, count in counts.items()
        for number in range(count)
    )


def try_offer(scenario: Scenario, offer: Offer, manager: ManagerConfig, prices: Prices, *, seed: int) -> TriedOffer:
    """Simulate a run on it, which begins with half of the gangs in rollout, or with those that do nothing else."""
    gangs = make_gangs(offer.num_gangs, offer.gang_size)
    num_rollout = max(len(gangs) // 2, sum(not gang.may_train for gang in gangs))
    run = simulate(replace(scenario, gangs=gangs, zones=(), num_initial_rollout=num_rollout), manager, seed=seed)
    return TriedOffer(
        offer=offer,
        tokens_per_s=run.num_trained_tokens / run.duration_s,
        cost_per_million=cost_per_million(run, prices),
    )


def _rate(scenario: Scenario, rates: Rates, counts: Mapping[str, int], size: int) -> float:
    """In the middle of the run."""
    return fluid_rate(replace(scenario, gangs=make_gangs(counts, size), zones=()), rates, 0.5)
