"""From the configuration of a run to what is simulated: the same YAML as for ``rlserve launch``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from rlserve.config.pool_split import find_groups, gang_view
from rlserve.config.tree import RunConfig
from rlserve.errors import UserError
from rlserve.manager.config import ManagerConfig
from rlserve.pool.gangs import check_gangs, cut_gangs
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import model_shape
from rlserve.simulate.costs.roofline import RooflineCosts
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.workload.base import Workload
from rlserve.simulate.workload.log_normal import LogNormalConfig, LogNormalWorkload
from rlserve.simulate.workload.schedules import Schedule
from rlserve.simulate.workload.trace import read_trace

POLICY_CONFIGS: Mapping[str, type[ManagerConfig]] = {config().policy: config for config in get_args(ManagerConfig)}


class AnyNumber(dict[str, int]):
    """As many accelerators of any type as are asked for: a simulated pool needs none of them."""

    def __missing__(self, name: str) -> int:
        return 1_000_000

    def get(self, name: str, default: object = None) -> int:
        """Of any type."""
        return self[name]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a configuration does not say of the work that there will be."""

    median: Schedule
    """Response tokens."""
    sigma: float
    kept: Schedule
    num_prompt_tokens: int
    max_tokens: int | None = None
    """None takes ``rollout.max_tokens``."""
    trace: Path | None = None
    """Lengths from this file instead."""


def build_scenario(config: RunConfig, load: Load, *, model: str, duration_s: float) -> Scenario:
    """The scenario of a configuration.

    Raises:
        UserError: the pool is of no certain size, or has no two gangs; the trace cannot be used; no such model.
    """
    groups = find_groups(config, AnyNumber())
    if groups is None or config.pool.slots == "auto":
        raise UserError("a simulation needs to know its pool: set pool.slots, or choose one, as in pool=h100_h200")
    rollout = config.rollout
    size = rollout.engine.tensor_parallel_size
    cut = cut_gangs(groups, size)
    check_gangs(cut, size)
    return Scenario(
        gangs=tuple(gang_view(gang) for gang in cut.gangs),
        workload=_workload(config, load),
        costs=RooflineCosts(
            roofline=Costs(shape=model_shape(model), tensor_parallel_size=size),
            memory_fraction=rollout.engine.gpu_memory_fraction,
        ),
        prompts_per_step=rollout.prompts_per_step,
        samples_per_prompt=rollout.samples_per_prompt,
        max_staleness=rollout.max_staleness,
        max_num_sequences=rollout.engine.max_num_sequences,
        num_initial_rollout=config.pool.num_initial_rollout,
        duration_s=duration_s,
    )


def choose_policies(config: RunConfig, names: Sequence[str]) -> dict[str, ManagerConfig]:
    """Policies by name: that of the configuration as it is configured there, others with their defaults.

    Raises:
        UserError: no such policy.
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
    return chosen


def _workload(config: RunConfig, load: Load) -> Workload:
    max_tokens = load.max_tokens or config.rollout.max_tokens
    samples = config.rollout.samples_per_prompt
    if load.trace is not None:
        return read_trace(load.trace, kept=load.kept, samples_per_prompt=samples, max_tokens=max_tokens)
    return LogNormalWorkload(
        config=LogNormalConfig(
            median=load.median,
            sigma=load.sigma,
            max_tokens=max_tokens,
            num_prompt_tokens=load.num_prompt_tokens,
            samples_per_prompt=samples,
            kept=load.kept,
        )
    )
