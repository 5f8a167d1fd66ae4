"""From the configuration of a run to what is simulated: the same YAML as for ``rlserve launch``.

A pool of paced slots is simulated as it would run: the modelled model and its tokens, the load of ``rollout.workload``,
the steps of the run. Other pools take their costs and their load from the options of the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from rlserve.config.growth import growth_terms
from rlserve.config.pool_split import find_groups, gang_views
from rlserve.config.thresholds import check_thresholds
from rlserve.config.tree import RunConfig
from rlserve.errors import UserError
from rlserve.manager.config import ManagerConfig
from rlserve.manager.policies.base import GangView
from rlserve.pool.gangs import check_gangs, cut_gangs
from rlserve.pool.pacing.config import PacingConfig
from rlserve.pool.pacing.factory import run_costs
from rlserve.rollout.workload.courses import Course
from rlserve.rollout.workload.factory import create_workload
from rlserve.rollout.workload.lengths import LogNormalLengths
from rlserve.rollout.workload.workload import Workload
from rlserve.roofline.accelerators import is_spot
from rlserve.simulate.costs.base import Costs
from rlserve.simulate.costs.recorded import recorded_costs
from rlserve.simulate.costs.roofline import RooflineCosts
from rlserve.simulate.markets.base import Availability, Zone, spread
from rlserve.simulate.markets.generated import MarketFigures, generate_availability
from rlserve.simulate.markets.traces import read_availability
from rlserve.simulate.scenario import LossRates, Overheads, Scenario
from rlserve.tasks.registry import TASKS
from rlserve.tracking.cost.prices import read_prices
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.run_folder import RunFolder

POLICY_CONFIGS: Mapping[str, type[ManagerConfig]] = {config().policy: config for config in get_args(ManagerConfig)}

_OVERHEADS = Overheads(step_s=0.03, sync_s=0.08)
"""Of this machine's time, with nothing else running on it."""
_MEDIAN_TOKENS = 2000.0
_NUM_PROMPT_TOKENS = 256
_NUM_MEASURED = 32
_LONGEST_S = 30 * 24 * 3600.0
"""A run that is counted in steps ends by then."""


class AnyNumber(dict[str, int]):
    """As many accelerators of any type as are asked for: a simulated pool needs none of them."""

    def __missing__(self, name: str) -> int:
        return 1_000_000

    def get(self, name: str, default: object = None) -> int:
        """Of any type."""
        return self[name]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is asked for in place of what the configuration says. None leaves it."""

    hours: float | None = None
    """Of a run that has no certain number of steps."""
    model: str | None = None
    median: Course | None = None
    """Tokens of an answer of the modelled model."""
    sigma: float | None = None
    kept: Course | None = None
    num_prompt_tokens: int | None = None
    trace: Path | None = None
    """Lengths from this file."""
    failures_per_hour: float = 0.0
    notices_per_hour: float = 0.0
    spot_market: str | None = None
    """Traces of zones with commas between them, or a number of zones by chance; None: spot machines stay."""
    costs: Path | None = None
    """As this run recorded them."""


def build_scenario(config: RunConfig, changes: Changes) -> Scenario:
    """The scenario of a configuration.

    Raises:
        UserError: the pool is of no certain size, or has no two gangs; the trace cannot be used; no such model;
            no run to take costs from.
    """
    groups = find_groups(config, AnyNumber())
    if groups is None or config.pool.slots == "auto":
        raise UserError("a simulation needs to know its pool: set pool.slots, or choose one, as in pool=h100_h200")
    if config.pool.placement == "colocated":
        raise UserError(
            "pool.placement=colocated cannot be simulated: a simulation is of slots that move, or of a split that stays"
        )
    rollout, pacing = config.rollout, _pacing(config, changes)
    size = rollout.engine.tensor_parallel_size
    cut = cut_gangs(groups, size)
    check_gangs(cut, size)
    gangs = gang_views(cut.gangs, config.pool)
    prices = None if config.cost.prices is None else read_prices(Path(config.cost.prices))
    duration_s = 3600 * changes.hours if changes.hours else _LONGEST_S
    return Scenario(
        gangs=gangs,
        workload=_workload(config, changes, tokens_scale=pacing.tokens_scale),
        costs=_costs(config, pacing, changes),
        num_prompt_tokens=changes.num_prompt_tokens or _num_prompt_tokens(config),
        max_tokens=rollout.max_tokens,
        prompts_per_step=rollout.prompts_per_step,
        samples_per_prompt=rollout.samples_per_prompt,
        num_greedy=config.num_answers_per_prompt - rollout.samples_per_prompt,
        max_staleness=rollout.max_staleness,
        max_num_sequences=rollout.engine.max_num_sequences,
        num_initial_rollout=config.pool.num_initial_rollout,
        num_steps=None if changes.hours else config.num_steps,
        duration_s=duration_s,
        zones=_zones(gangs, changes, duration_s=duration_s, seed=config.seed),
        losses=LossRates(
            failures_per_hour=changes.failures_per_hour,
            notices_per_hour=changes.notices_per_hour,
            grace_s=config.pool.notice_grace_s,
        ),
        overheads=_overheads(pacing, changes),
        scale_out=growth_terms(config, prices) if config.scale_out.is_enabled else None,
        prices=prices,
    )


def choose_policies(config: RunConfig, names: Sequence[str]) -> dict[str, ManagerConfig]:
    """Policies by name: that of the configuration as it is configured there, others with their defaults.

    Raises:
        UserError: no such policy, or one that could never act with its defaults.
    """
    known = ", ".join(POLICY_CONFIGS)
    chosen: dict[str, ManagerConfig] = {}
    for name in names or (config.manager.policy,):
        if name == config.manager.policy:
            chosen[name] = config.manager
        elif name in POLICY_CONFIGS:
            chosen[name] = replace(POLICY_CONFIGS[name](), interval_s=config.manager.interval_s)
        else:
            raise UserError(f"no policy is called {name!r}: there are {known}")
        for problem in check_thresholds(chosen[name], config.rollout):
            raise UserError(f"{name}: {problem.key}: {problem.message}; say manager={name} with both")
    return chosen


def _zones(gangs: Sequence[GangView], changes: Changes, *, duration_s: float, seed: int) -> tuple[Zone, ...]:
    if changes.spot_market is None:
        return ()
    gang_ids = [gang.id for gang in gangs if is_spot(gang.type)]
    if not gang_ids:
        raise UserError("--spot-market is for slots on spot machines, and pool.slots has none: say type: H100-spot")
    places: dict[str, Availability]
    if changes.spot_market.isdecimal():
        names = [f"zone {number}" for number in range(max(1, int(changes.spot_market)))]
        places = {
            name: generate_availability(MarketFigures(), duration_s=duration_s, seed=f"{seed} {name}") for name in names
        }
    else:
        places = {path: read_availability(Path(path)) for path in changes.spot_market.split(",")}
    return spread(gang_ids, places)


def _pacing(config: RunConfig, changes: Changes) -> PacingConfig:
    """What the slots stand for; those that are not paced, for what they are."""
    pacing = config.pool.pacing if config.pool.is_paced else PacingConfig(tokens_scale=1.0)
    return pacing if changes.model is None else replace(pacing, model=changes.model)


def _workload(config: RunConfig, changes: Changes, *, tokens_scale: float) -> Workload:
    asked = config.rollout.workload
    if changes.trace is not None:
        asked = replace(asked, median_tokens=None, trace=str(changes.trace))
    elif asked.median_tokens is None and asked.trace is None:
        asked = replace(asked, median_tokens=_MEDIAN_TOKENS)
    if changes.sigma is not None:
        asked = replace(asked, sigma=changes.sigma)
    load = create_workload(asked, seed=config.seed, num_steps=config.num_steps, tokens_scale=tokens_scale)
    if changes.median is not None and asked.trace is None:
        load = replace(load, lengths=LogNormalLengths(median_tokens=changes.median, sigma=asked.sigma))
    return load if changes.kept is None else replace(load, kept=changes.kept, says_kept=None)


def _costs(config: RunConfig, pacing: PacingConfig, changes: Changes) -> Costs:
    engine = config.rollout.engine
    size = engine.tensor_parallel_size
    if changes.costs is not None:
        run = RunFolder.open(changes.costs)
        return recorded_costs(
            read_json_lines(run.events_file),
            read_json_lines(run.metrics_file),
            block_size=engine.block_size,
            num_blocks=engine.num_blocks,
            gang_size=size,
        )
    return RooflineCosts(
        roofline=run_costs(pacing, config.algorithm, config.trainer, tensor_parallel_size=size),
        memory_fraction=engine.gpu_memory_fraction,
        block_size=engine.block_size,
        num_blocks=engine.num_blocks,
    )


def _overheads(pacing: PacingConfig, changes: Changes) -> Overheads:
    """What is recorded has them in it."""
    if changes.costs is not None:
        return Overheads()
    return Overheads(step_s=_OVERHEADS.step_s / pacing.dilation, sync_s=_OVERHEADS.sync_s / pacing.dilation)


def _num_prompt_tokens(config: RunConfig) -> int:
    """Of a prompt, in the mean: of a built-in task, whose characters are tokens, where the run would take them."""
    task = TASKS.get(config.data.path.removeprefix("builtin:"))
    if task is None or not config.pool.is_paced:
        return _NUM_PROMPT_TOKENS
    records = task.records(seed=config.seed, split="train", count=_NUM_MEASURED)
    return max(1, round(sum(len(record.prompt) for record in records) / _NUM_MEASURED))
