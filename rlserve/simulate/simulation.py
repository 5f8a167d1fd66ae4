"""One simulated run, from its parts to its result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlserve.manager.config import ManagerConfig
from rlserve.manager.gang_table import GangTransition
from rlserve.manager.initial_split import initial_split
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.roles import Role
from rlserve.simulate.clock import Clock
from rlserve.simulate.departures import Departures
from rlserve.simulate.generation import Generation
from rlserve.simulate.journal import Journal
from rlserve.simulate.losses import Losses
from rlserve.simulate.reallocation import Reallocation
from rlserve.simulate.scale_out import SimulatedScaleOut
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.spending import Spending
from rlserve.simulate.spot_machines import SpotMachines
from rlserve.simulate.training import Training
from rlserve.simulate.weights import Weights
from rlserve.tracking.cost.statement import Statement


@dataclass(frozen=True, kw_only=True)
class SimulatedMove:
    """A gang changed its role."""

    begin_s: float
    end_s: float
    gang_id: str
    to: Role


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """What a run came to."""

    duration_s: float
    num_trained_groups: float
    num_trained_tokens: float
    num_generated_tokens: float
    num_steps: int
    step_ends_s: tuple[float, ...]
    first_step_s: float | None
    """When the first step began; None where none did."""
    wait_share: float
    """Of the time, that the trainer waited for batches."""
    bubble_share: float
    """Of all gangs' time, that they neither generated nor trained."""
    staleness: Mapping[int, int]
    """Trained groups by the age of their oldest token, in steps."""
    moves: tuple[SimulatedMove, ...]
    num_failures: int
    num_notices: int
    num_late: int
    """Gangs that were not empty when their notice's time was up, and were lost with what they had."""
    mean_grown: float
    """Gangs in the mean that were asked for beyond those that the run began with, from their start to their end."""
    peak_per_hour: float | None
    """Most that the slots of a run that grows cost an hour at any time; None of others, and without prices."""
    spent: Statement
    """What the gangs' time went into."""
    history: tuple[GangTransition, ...]
    """What each gang did when."""
    num_events: int
    host_s: float
    """Of a processor, that the simulation itself took."""

    @property
    def groups_per_s(self) -> float:
        """Prompt groups trained in a second."""
        return self.num_trained_groups / self.duration_s

    @property
    def training_s(self) -> float:
        """Time since there was a first batch to train on."""
        return self.duration_s - (self.first_step_s or 0.0)

    @property
    def moves_per_hour(self) -> float:
        """Changes of role in an hour."""
        return 3600 * len(self.moves) / self.duration_s


def simulate(scenario: Scenario, manager: ManagerConfig, *, seed: int, chance: int = 0) -> SimulatedRun:
    """Run a scenario under a policy. Equal arguments give equal results, but for ``host_s``.

    ``seed`` is that of the load, ``chance`` of all else that is left to chance.

    Raises:
        PoolError: no such split of the pool.
    """
    began = time.process_time()
    clock = Clock()
    journal = Journal(spending=Spending(clock), meter=None if manager.policy == "static" else Meter())
    generation = Generation(clock, scenario, journal, seed=seed, on_ready=lambda: training.go_on())
    weights = Weights(clock, scenario.costs, journal, generation, overheads=scenario.overheads, chance=chance)
    training = Training(clock, scenario, journal, generation, publish=weights.publish)
    reallocation = Reallocation(
        clock,
        scenario,
        journal,
        generation=generation,
        training=training,
        weights=weights,
        policy=create_policy(manager),
    )
    reallocation.begin(initial_split(scenario.gangs, scenario.num_initial_rollout))
    generation.admit()
    training.go_on()
    clock.start(reallocation.run(manager.interval_s))
    losses, departures = _begin_losses(clock, scenario, reallocation, seed=seed)
    grows = _begin_growing(clock, scenario, reallocation, departures, manager)
    clock.run_until(scenario.duration_s)
    training.close()
    generation.close()
    generation.check_integrity()
    reallocation.table.check_integrity()
    grown_s, peak_per_hour = (0.0, None) if grows is None else grows.closed()
    gang_s = len(scenario.gangs) * clock.now_s + grown_s
    return SimulatedRun(
        duration_s=clock.now_s,
        num_trained_groups=journal.num_trained_groups,
        num_trained_tokens=journal.num_trained_tokens,
        num_generated_tokens=journal.num_generated_tokens,
        num_steps=journal.num_steps,
        step_ends_s=tuple(journal.step_ends_s),
        first_step_s=journal.first_step_s,
        wait_share=journal.wait_s / clock.now_s,
        bubble_share=1 - (journal.train_s + journal.generate_s) / gang_s,
        staleness=dict(sorted(journal.staleness.items())),
        moves=_moves(journal),
        num_failures=losses.num_failures,
        num_notices=departures.num_notices,
        num_late=departures.num_late,
        mean_grown=grown_s / clock.now_s,
        peak_per_hour=peak_per_hour,
        spent=journal.spending.statement(),
        history=reallocation.table.history,
        num_events=clock.num_events,
        host_s=time.process_time() - began,
    )


def _moves(journal: Journal) -> tuple[SimulatedMove, ...]:
    return tuple(
        SimulatedMove(begin_s=begin_s, end_s=end_s, gang_id=gang_id, to=to)
        for begin_s, end_s, gang_id, to in journal.moves
    )


def _begin_growing(
    clock: Clock, scenario: Scenario, reallocation: Reallocation, departures: Departures, manager: ManagerConfig
) -> SimulatedScaleOut | None:
    """Nodes are asked for from now on, where the scenario lets them."""
    if scenario.scale_out is None:
        return None
    grows = SimulatedScaleOut(
        clock,
        reallocation,
        departures,
        terms=replace(scenario.scale_out, by_rates=manager.policy == "rate_matching"),
        prices=scenario.prices,
        start_s=scenario.losses.machine_start_s,
    )
    clock.start(grows.run())
    return grows


def _begin_losses(
    clock: Clock, scenario: Scenario, reallocation: Reallocation, *, seed: int
) -> tuple[Losses, Departures]:
    """Workers die, nodes leave, and zones take machines back, from now on."""
    departures = Departures(clock, reallocation, grace_s=scenario.losses.grace_s)
    losses = Losses(clock, scenario.losses, reallocation, departures, seed=seed)
    losses.begin()
    machines = SpotMachines(clock, reallocation, departures, start_s=scenario.losses.machine_start_s, seed=seed)
    for zone in scenario.zones:
        machines.follow(zone)
    return losses, departures
