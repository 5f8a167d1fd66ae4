"""Several policies over several seeds, against the fluid oracle and the best static split in hindsight.

The best static split is that with the highest mean over the seeds. It is looked for on both sides of the one that the
oracle's rates give, until two in a row are worse: trained groups rise and then fall with the number of rollout gangs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from statistics import fmean

from rlserve.manager.config import ManagerConfig, StaticConfig
from rlserve.simulate.intervals import Estimate, estimate
from rlserve.simulate.oracle import fewest_rollout, fluid_groups_per_s, optimal_num_rollout, saturated_rates, with_split
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.simulation import SimulatedRun, simulate
from rlserve.tracking.cost.figures import MILLION, CostFigures
from rlserve.tracking.cost.prices import Prices

_NUM_WORSE = 2
_STATIC = StaticConfig(interval_s=60.0)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to simulate."""

    scenario: Scenario
    manager: ManagerConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """One policy over all seeds."""

    name: str
    runs: tuple[SimulatedRun, ...]
    """By seed."""
    groups_per_s: Estimate
    tokens_per_s: Estimate
    of_oracle: Estimate
    of_best_static: Estimate
    """Seed by seed against the best static split."""
    moves_per_hour: Estimate
    wait_share: Estimate
    bubble_share: Estimate
    useful_share: Estimate
    """Of the gangs' time: training, and generating what was trained on."""
    cost_per_million: Estimate
    """Of a million trained tokens, prompts included, in :attr:`StudyResult.cost_unit`."""
    num_grown: Estimate
    """Gangs in the mean that were asked for beyond those that the run began with."""
    staleness: Mapping[int, float]
    """Share of trained groups by the age of their oldest token."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study found."""

    best_num_rollout: int
    """Of the best static split."""
    splits: Mapping[int, float]
    """Groups a second of each static split that was tried."""
    oracle_groups_per_s: float
    cost_unit: str
    """The currency of the prices, or GPU-hours where a type of slot has none."""
    policies: tuple[PolicyResult, ...]
    """The best static split first."""


def run_job(job: Job) -> SimulatedRun:
    """Simulate it; without its history, which is long."""
    return replace(simulate(job.scenario, job.manager, seed=job.seed), history=())


class Study:
    """Simulates a scenario under policies."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        seeds: Sequence[int],
        executor: Executor | None = None,
        run: Callable[[Job], SimulatedRun] = run_job,
    ) -> None:
        """``seeds`` are those of the load. ``executor`` runs simulations beside each other; without one they run one
        after the other here. ``run`` is what runs a job."""
        self._scenario = scenario
        self._seeds = tuple(seeds)
        self._run = run
        self._map: Callable[[Callable[[Job], SimulatedRun], Iterable[Job]], Iterable[SimulatedRun]] = (
            map if executor is None else executor.map
        )
        self._rates = saturated_rates(scenario)

    def run(self, policies: Mapping[str, ManagerConfig]) -> StudyResult:
        """Try the static splits, then the policies."""
        oracle = fluid_groups_per_s(self._scenario, self._rates)
        splits, prices = self._static_splits(), self._known_prices()
        best = max(splits, key=lambda num_rollout: _mean_rate(splits[num_rollout]))
        tried = {f"best static ({best})": splits[best]}
        fixed = replace(self._scenario, scale_out=None)
        tried |= {name: self._runs(fixed, manager) for name, manager in policies.items()}
        if self._scenario.scale_out is not None:
            tried |= {f"{name}, growing": self._runs(self._scenario, each) for name, each in policies.items()}
        return StudyResult(
            best_num_rollout=best,
            splits={num: _mean_rate(runs) for num, runs in sorted(splits.items())},
            oracle_groups_per_s=oracle,
            cost_unit="GPU-hours" if prices is None else prices.currency,
            policies=tuple(policy_result(name, runs, splits[best], oracle, prices) for name, runs in tried.items()),
        )

    def _known_prices(self) -> Prices | None:
        """None where one is lacking."""
        prices = self._scenario.prices
        asked = () if self._scenario.scale_out is None else self._scenario.scale_out.types
        names = {gang.type for gang in self._scenario.gangs} | {each.name for each in asked}
        is_known = prices is not None and all(prices.of(name) is not None for name in names)
        return prices if is_known else None

    def _static_splits(self) -> dict[int, tuple[SimulatedRun, ...]]:
        first, fewest = optimal_num_rollout(self._scenario, self._rates), fewest_rollout(self._scenario)
        tried = {first: self._split(first)}
        for direction in (1, -1):
            best, num_worse, number = _mean_rate(tried[first]), 0, first + direction
            while fewest <= number < len(self._scenario.gangs) and num_worse < _NUM_WORSE:
                tried[number] = self._split(number)
                rate = _mean_rate(tried[number])
                num_worse = 0 if rate > best else num_worse + 1
                best, number = max(best, rate), number + direction
        return tried

    def _split(self, num_rollout: int) -> tuple[SimulatedRun, ...]:
        return self._runs(replace(with_split(self._scenario, num_rollout), scale_out=None), _STATIC)

    def _runs(self, scenario: Scenario, manager: ManagerConfig) -> tuple[SimulatedRun, ...]:
        return tuple(self._map(self._run, [Job(scenario=scenario, manager=manager, seed=seed) for seed in self._seeds]))


def policy_result(
    name: str,
    runs: Sequence[SimulatedRun],
    best_static: Sequence[SimulatedRun],
    oracle_groups_per_s: float,
    prices: Prices | None = None,
) -> PolicyResult:
    """Sum a policy's runs up; what they cost at ``prices``, or else in GPU-hours."""
    staleness = Counter[int]()
    for run in runs:
        staleness.update(run.staleness)
    return PolicyResult(
        name=name,
        runs=tuple(runs),
        groups_per_s=estimate([run.groups_per_s for run in runs]),
        tokens_per_s=estimate([run.num_trained_tokens / run.duration_s for run in runs]),
        of_oracle=estimate([run.num_trained_groups / (oracle_groups_per_s * run.training_s) for run in runs]),
        of_best_static=estimate(
            [run.groups_per_s / best.groups_per_s for run, best in zip(runs, best_static, strict=True)]
        ),
        moves_per_hour=estimate([run.moves_per_hour for run in runs]),
        wait_share=estimate([run.wait_share for run in runs]),
        bubble_share=estimate([run.bubble_share for run in runs]),
        useful_share=estimate([run.spent.useful_share or 0.0 for run in runs]),
        cost_per_million=estimate([cost_per_million(run, prices) for run in runs]),
        num_grown=estimate([run.mean_grown for run in runs]),
        staleness={age: number / staleness.total() for age, number in sorted(staleness.items())},
    )


def cost_per_million(run: SimulatedRun, prices: Prices | None) -> float:
    """Of trained tokens: in money where prices are given, which every type of slot has; else in GPU-hours."""
    amount = CostFigures(statement=run.spent, prices=prices).amount()
    cost = amount.gpu_hours if amount.money is None else amount.money
    return cost / max(run.num_trained_tokens, 1.0) * MILLION


def _mean_rate(runs: Sequence[SimulatedRun]) -> float:
    return fmean(run.groups_per_s for run in runs)
