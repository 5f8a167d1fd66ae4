"""The fluid oracle: what a pool would train if gangs could be divided, and changed their role at no cost.

    maximise X   such that   Σ x_g r_g  ≥  X · generated tokens a trained group
                             Σ (1 - x_g) s_g  ≥  X · trained tokens a group         0 ≤ x_g ≤ 1

r_g is what a replica of the type generates when it always has work (simulated by itself, with its group boundaries and
prompts), s_g what a trainer of it trains. The programme is the slow planner's. Integrated over a load that drifts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from statistics import fmean, harmonic_mean

from rlserve.manager.policies.ordering import order_for_rollout
from rlserve.manager.policies.planner import TypeRates, fluid_optimum
from rlserve.simulate.clock import Clock
from rlserve.simulate.decode_curve import DecodeCurve
from rlserve.simulate.replica import Replica
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.work import Group, Sample

_NUM_WARM_UP, _NUM_MEASURED = 3, 12
"""Times that a replica's places are filled anew."""
_NUM_POINTS = 60
"""Of the integral over the run."""
_TRAINED_TOKENS = 1_000_000
"""Of a step that is long enough for rates."""
_LOOK_S = 10.0
_SEED = 12345


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What gangs can do that always have work, by type, in tokens a second."""

    generate: dict[str, float]
    train: dict[str, float]


def saturated_rates(scenario: Scenario) -> Rates:
    """Measure them."""
    names = sorted({gang.type for gang in scenario.gangs})
    may_train = {gang.type for gang in scenario.gangs if gang.may_train}
    return Rates(
        generate={name: _generation_rate(scenario, name) for name in names},
        train={
            name: _TRAINED_TOKENS / scenario.costs.train_step_s((name,), _TRAINED_TOKENS) if name in may_train else 0.0
            for name in names
        },
    )


def fluid_groups_per_s(scenario: Scenario, rates: Rates) -> float:
    """Groups a second that the oracle trains in the whole run: the mean over its time, or over its steps."""
    points = [fluid_rate(scenario, rates, (point + 0.5) / _NUM_POINTS) for point in range(_NUM_POINTS)]
    return fmean(points) if scenario.num_steps is None else harmonic_mean(points)


def fluid_rate(scenario: Scenario, rates: Rates, share: float) -> float:
    """Groups that the oracle trains in a second, with the load when ``share`` of the run has passed."""
    kept = scenario.workload.kept_share(share)
    if kept <= 0:
        return 0.0
    num_tokens = scenario.mean_num_tokens(share)
    num_generated = scenario.num_answers_per_prompt * num_tokens
    num_trained = scenario.samples_per_prompt * (num_tokens + scenario.num_prompt_tokens)
    counts = Counter(gang.type for gang in scenario.gangs)
    generate = {name: rates.generate[name] * kept / num_generated for name in counts}
    train = {name: rates.train[name] / num_trained for name in counts}
    return fluid_optimum(
        [
            TypeRates(type=name, num_gangs=number, rollout_rate=generate[name], train_rate=train[name])
            for name, number in counts.items()
        ]
    ).rate


def fewest_rollout(scenario: Scenario) -> int:
    """Rollout gangs of any split: those that may not train, or one."""
    return max(1, sum(not gang.may_train for gang in scenario.gangs))


def optimal_num_rollout(scenario: Scenario, rates: Rates) -> int:
    """The whole number of rollout gangs that is best in the mean of the run, by the same reckoning."""
    ordered = order_for_rollout(scenario.gangs)
    shares = [(point + 0.5) / _NUM_POINTS for point in range(_NUM_POINTS)]

    def trained(num_rollout: int) -> float:
        total = 0.0
        for share in shares:
            num_tokens = scenario.mean_num_tokens(share)
            num_trained = scenario.samples_per_prompt * (num_tokens + scenario.num_prompt_tokens)
            generated = sum(rates.generate[gang.type] for gang in ordered[:num_rollout])
            generated /= scenario.num_answers_per_prompt * num_tokens
            kept = scenario.workload.kept_share(share)
            total += min(
                generated * kept,
                sum(rates.train[gang.type] for gang in ordered[num_rollout:]) / num_trained,
            )
        return total

    return max(range(fewest_rollout(scenario), len(ordered)), key=trained)


def _generation_rate(scenario: Scenario, type_name: str) -> float:
    """Tokens a second of one replica that is given a new group as soon as it has room for one."""
    clock = Clock()
    scenario = replace(scenario, workload=scenario.workload.seeded(_SEED))
    capacity = scenario.max_num_sequences
    num_places = max(1, capacity // scenario.num_answers_per_prompt)
    rounds = (_NUM_WARM_UP, _NUM_WARM_UP + _NUM_MEASURED)
    marks: list[tuple[float, float]] = []
    """Time, and tokens generated until then, when so many rounds of groups had been given."""
    position = held = 0

    def feed() -> None:
        nonlocal position, held
        while not held or held + scenario.num_answers_per_prompt <= capacity:
            work = scenario.work(position, 0.0)
            group = Group(id=str(position), position=position, work=work)
            group.unfinished = [Sample(group=group, length=length) for length in work.lengths]
            position += 1
            held += len(work.lengths)
            replica.add(group)

    def done(_: Replica, group: Group) -> None:
        nonlocal held
        held -= len(group.work.lengths)
        if len(marks) < 2 and position >= rounds[len(marks)] * num_places:
            marks.append((clock.now_s, replica.num_generated))
        feed()

    replica = Replica(
        clock,
        gang_id="saturated",
        type_name=type_name,
        costs=scenario.costs,
        curve=DecodeCurve(scenario.costs, type_name),
        max_num_sequences=capacity,
        version=0,
        on_done=done,
    )
    feed()
    while len(marks) < 2:
        clock.run_until(clock.now_s + _LOOK_S)
    (begin_s, before), (end_s, after) = marks
    return (after - before) / (end_s - begin_s)


def with_split(scenario: Scenario, num_rollout: int) -> Scenario:
    """The same with another first split."""
    return replace(scenario, num_initial_rollout=num_rollout)
