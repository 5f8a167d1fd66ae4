"""Compare the policies on a simulated pool of twelve GPUs, and measure the simulator itself.

python benchmarks/simulation.py [--seeds N] [--hours H] [--policy A,B] [--json FILE]

Three loads: the share of prompt groups that is kept is steady, drifts, or is a square wave of six phases. Each row has
the bar that it must reach, and the exit code is 1 where one is missed. Then: how much faster than real time a
simulation is with 12 and with 1,000 GPUs, and how long one decision takes with 1,000.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from machine import circumstances
from rich.console import Console
from rich.table import Table

from rlserve.manager.config import ManagerConfig, QueueThresholdConfig, StaticConfig
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.policies.base import GangFigures, GangView, Observation
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.roles import Role
from rlserve.roofline.accelerators import slot_type
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import model_shape
from rlserve.simulate.costs.roofline import RooflineCosts
from rlserve.simulate.from_config import POLICY_CONFIGS
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.simulation import simulate
from rlserve.simulate.study import Study, StudyResult
from rlserve.simulate.table import study_data, study_table
from rlserve.simulate.workload.log_normal import LogNormalConfig, LogNormalWorkload
from rlserve.simulate.workload.schedules import Drift, Schedule, SquareWave, Steady

LOADS: dict[str, Schedule] = {"steady": Steady(0.7), "drift": Drift(1.0, 0.4), "square": SquareWave(1.0, 0.4, 6)}
OF_ORACLE = {"steady": 0.97, "drift": 0.96, "square": 0.92}
MAX_MOVES_PER_HOUR, MAX_DECISION_S, MIN_SPEED = 30.0, 0.010, 1000.0
DEFAULT = ManagerConfig.__args__[0]().policy  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure and its bar."""

    what: str
    value: float
    bar: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def gangs(**counts: int) -> tuple[GangView, ...]:
    """So many GPUs of each type."""
    return tuple(
        GangView(
            id=f"{name}/{number}",
            type=name,
            figures=GangFigures(
                memory_bandwidth_gb_s=slot_type(name).memory_bandwidth_gb_s, flops_tflops=slot_type(name).flops_tflops
            ),
        )
        for name, count in counts.items()
        for number in range(count)
    )


def scenario(kept: Schedule, hours: float, *, scale: int = 1) -> Scenario:
    """``scale`` times 8 H100 and 4 H200 with an 8B model."""
    return Scenario(
        gangs=gangs(H100=8 * scale, H200=4 * scale),
        workload=LogNormalWorkload(config=LogNormalConfig(kept=kept, sigma=0.75, max_tokens=16_384)),
        costs=RooflineCosts(roofline=Costs(shape=model_shape("8B"))),
        prompts_per_step=64 * scale,
        max_staleness=8,
        max_num_sequences=192,
        num_initial_rollout=8 * scale,
        duration_s=3600 * hours,
    )


def load_checks(load: str, result: StudyResult, policy: str) -> list[Check]:
    """What one load must show of a policy."""
    found = {each.name: each for each in result.policies}[policy]
    return [
        Check(what=f"{load}: share of the fluid oracle", value=found.of_oracle.mean, bar=OF_ORACLE[load]),
        Check(
            what=f"{load}: against the best static split",
            value=found.of_best_static.mean,
            bar=1.04 if load == "drift" else 0.99,
        ),
        Check(what=f"{load}: moves an hour", value=found.moves_per_hour.mean, bar=MAX_MOVES_PER_HOUR, at_least=False),
    ]


def decision_s(manager: ManagerConfig) -> float:
    """One decision about 1,000 GPUs, the best of a few."""
    pool = [
        replace(gang, role=Role.TRAIN if index % 2 else Role.ROLLOUT)
        for index, gang in enumerate(gangs(H100=666, H200=334))
    ]
    whole = scenario(LOADS["steady"], 1.0, scale=83)
    policy = create_policy(manager)
    observation = Observation(
        time_s=1000.0,
        queue_length=5000,
        num_buffered=100,
        num_in_flight=8000,
        trainer_waiting=False,
        admission=whole.admission,
        measured=Measurements(),
        gangs=tuple(pool),
        legal_trainer_sizes=tuple(range(1, 1000)),
        moving=False,
        last_move_end_s=None,
    )
    times_s = []
    for _ in range(20):
        began = time.perf_counter()
        policy.decide(observation, policy.initial_state())
        times_s.append(time.perf_counter() - began)
    return min(times_s)


def speed(scale: int, hours: float, manager: ManagerConfig) -> float:
    """Modelled seconds in a second of one processor."""
    run = simulate(scenario(LOADS["steady"], hours, scale=scale), manager, seed=0)
    return run.duration_s / run.host_s


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--policy", default=DEFAULT, help=f"to compare; the first is judged ({DEFAULT})")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    names = parsed.policy.split(",")
    policies: dict[str, ManagerConfig] = {name: POLICY_CONFIGS[name]() for name in names}
    policies["raw 100/10"] = QueueThresholdConfig(interval_s=5.0, cooldown_s=0.0)
    console, checks, data = Console(width=112), list[Check](), {}
    with ProcessPoolExecutor(parsed.jobs) as executor:
        for load, kept in LOADS.items():
            study = Study(scenario(kept, parsed.hours), seeds=range(parsed.seeds), executor=executor)
            result = study.run(policies)
            console.print(f"\n{load}", style="bold")
            console.print(study_table(result))
            data[load] = study_data(result)
            checks += load_checks(load, result, names[0])
            by_name = {each.name: each.groups_per_s.mean for each in result.policies}
            checks.append(
                Check(what=f"{load}: against raw 100/10", value=by_name[names[0]] / by_name["raw 100/10"], bar=1.10)
            )
    manager = policies[names[0]]
    checks += [
        Check(what="one decision, 1,000 GPUs, s", value=decision_s(manager), bar=MAX_DECISION_S, at_least=False),
        Check(what="times real time, 12 GPUs", value=speed(1, 1.0, manager), bar=MIN_SPEED),
    ]
    large = speed(83, 0.02, StaticConfig())
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("check", "value", "bar", ""):
        table.add_column(heading, justify="left" if heading == "check" else "right")
    for check in checks:
        sign = "≥" if check.at_least else "≤"
        table.add_row(check.what, f"{check.value:.4g}", f"{sign} {check.bar:g}", "ok" if check.holds else "missed")
    console.print(table)
    console.print(f"times real time, 996 GPUs: {large:.1f}")
    if parsed.json:
        found = [{**asdict(check), "holds": check.holds} for check in checks]
        written = {**circumstances(), "loads": data, "checks": found, "speed_996_gpus": large}
        parsed.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
