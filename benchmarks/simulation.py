"""Compare the policies on a simulated pool of twelve GPUs, and measure the simulator itself.

python benchmarks/simulation.py --validate [--case NAME …] [--folder DIR] [--json FILE]
python benchmarks/simulation.py [--load NAME …] [--seeds N] [--hours H] [--policy A,B] [--folder DIR] [--json FILE]

Three loads: the share of prompt groups that is kept is steady, drifts, or is a square wave of six phases. Each row has
the bar that it must reach, and the exit code is 1 where one is missed. The raw 100/10 rule is compared where a switch
takes 3 s, 2 s of them without training. Then: how much faster than real time a simulation is with 12 and with 1,000
GPUs, and how long one decision takes with 1,000. Runs of policies that measure nothing (all static splits, and the raw
rule) are kept in ``--folder`` and not done again (``kept_runs.py``).

With ``--validate``, real paced runs (docs/paced_runs.md) beside simulated ones of the same configuration instead
(``simulation_validation.py``). Real runs that lie in ``--folder`` are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from checks import Check
from kept_runs import KeptRuns, kept_runs
from machine import circumstances
from rich.console import Console
from rich.table import Table
from simulation_validation import CASES, MAX_ERROR, validate

from rlserve.manager.config import ManagerConfig, QueueThresholdConfig, StaticConfig
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.measurement.readings import GroupDone, ReplicaPolled, StepDone
from rlserve.manager.policies.base import GangFigures, GangView, Observation
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.roles import Role
from rlserve.rollout.workload.courses import Course, Drift, SquareWave, Steady
from rlserve.rollout.workload.lengths import LogNormalLengths
from rlserve.rollout.workload.workload import Workload
from rlserve.roofline.accelerators import slot_type
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import model_shape
from rlserve.simulate.costs.roofline import RooflineCosts
from rlserve.simulate.from_config import POLICY_CONFIGS
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.simulation import simulate
from rlserve.simulate.study import Study, StudyResult, run_job
from rlserve.simulate.table import study_data, study_table

LOADS: dict[str, Course] = {"steady": Steady(0.7), "drift": Drift(1.0, 0.25), "square": SquareWave(1.0, 0.25, 6)}
OF_ORACLE = {"steady": 0.97, "drift": 0.96, "square": 0.92}
MAX_MOVES_PER_HOUR, MAX_DECISION_S, MIN_SPEED = 30.0, 0.010, 1000.0
RAW = "raw 100/10"
DEFAULT = ManagerConfig.__args__[0]().policy  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class SlowMoves(RooflineCosts):
    """A change of role takes three seconds, for two of which training stands still."""

    def sleep_s(self, type_name: str) -> float:
        return 1.0

    def wake_s(self, type_name: str) -> float:
        return max(0.0, 1.0 - self.weights_s(type_name))

    def reshard_s(self, type_names: Sequence[str], num_before: int) -> float:
        return 2.0


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


def scenario(kept: Course, hours: float, *, scale: int = 1) -> Scenario:
    """``scale`` times 8 H100 and 4 H200 with an 8B model."""
    return Scenario(
        gangs=gangs(H100=8 * scale, H200=4 * scale),
        workload=Workload(lengths=LogNormalLengths(median_tokens=Steady(2000.0), sigma=0.75), kept=kept, num_steps=1),
        max_tokens=8_192,
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
        Check(name=f"{load}: share of the fluid oracle", value=found.of_oracle.mean, bar=OF_ORACLE[load]),
        Check(
            name=f"{load}: against the best static split",
            value=found.of_best_static.mean,
            bar=1.04 if load == "drift" else 0.99,
        ),
        Check(name=f"{load}: moves an hour", value=found.moves_per_hour.mean, bar=MAX_MOVES_PER_HOUR, at_least=False),
    ]


def decision_s(manager: ManagerConfig) -> float:
    """One decision about 1,000 GPUs of which everything has been measured, a minute after another; the best of a
    few."""
    pool = tuple(
        replace(gang, role=Role.TRAIN if index % 3 == 0 else Role.ROLLOUT)
        for index, gang in enumerate(gangs(H100=666, H200=334))
    )
    whole = scenario(LOADS["steady"], 1.0, scale=83)
    policy = create_policy(manager)
    observation = Observation(
        time_s=1000.0,
        queue_length=5000,
        num_buffered=6000,
        num_in_flight=30_000,
        trainer_waiting=False,
        num_steps_left=None,
        admission=whole.admission,
        measured=measured(pool),
        gangs=pool,
        legal_trainer_sizes=tuple(range(1, 1000)),
        moving=False,
        last_move_end_s=None,
    )
    times_s = []
    _, state = policy.decide(observation, policy.initial_state())
    observation = replace(observation, time_s=1060.0)
    for _ in range(20):
        began = time.perf_counter()
        plan, _ = policy.decide(observation, state)
        times_s.append(time.perf_counter() - began)
    assert manager.policy != DEFAULT or plan.forecast is not None, f"nothing was weighed: {plan.reason}"
    return min(times_s)


def measured(pool: Sequence[GangView]) -> Measurements:
    """Of a pool that has done its work for 1,000 seconds."""
    meter = Meter()
    trainers = tuple(gang.type for gang in pool if gang.role is Role.TRAIN)
    for second in range(0, 1001, 50):
        for gang in pool:
            if gang.role is Role.ROLLOUT:
                poll = ReplicaPolled(
                    time_s=second,
                    gang_id=gang.id,
                    type=gang.type,
                    since_s=0.0,
                    num_running=90,
                    num_waiting=0,
                    kv_cache_usage=0.5,
                    num_generated_tokens=(4000 if gang.type == "H100" else 5700) * second,
                    busy_s=second,
                    running_s=90.0 * second,
                )
                meter.note(poll)
        step = StepDone(
            end_s=second,
            types=trainers,
            wait_s=1.0,
            weights_s=0.1,
            work_s=48.0,
            num_groups=5312,
            num_tokens=100_000_000,
        )
        meter.note(step)
        for number in range(40):
            meter.note(GroupDone(time_s=second, kept=number % 10 < 7, num_tokens=20_000))
    return meter.figures(1000.0)


def speed(scale: int, hours: float, manager: ManagerConfig) -> float:
    """Modelled seconds in a second of one processor."""
    run = simulate(scenario(LOADS["steady"], hours, scale=scale), manager, seed=0)
    return run.duration_s / run.host_s


def run_load(parsed: argparse.Namespace, load: str, run: KeptRuns | None) -> tuple[StudyResult, StudyResult]:
    """The policies, and where moves are slow the judged one against the raw rule."""
    names = parsed.policy.split(",")
    policies: dict[str, ManagerConfig] = {name: POLICY_CONFIGS[name]() for name in names}
    raw = {names[0]: policies[names[0]], RAW: QueueThresholdConfig(interval_s=5.0, cooldown_s=0.0)}
    usual = scenario(LOADS[load], parsed.hours)
    slow = replace(usual, costs=SlowMoves(roofline=Costs(shape=model_shape("8B"))))
    with ProcessPoolExecutor(parsed.jobs) as executor:
        results = [
            Study(each, seeds=range(parsed.seeds), executor=executor, run=run or run_job).run(compared)
            for each, compared in ((usual, policies), (slow, raw))
        ]
    return results[0], results[1]


def raw_check(load: str, slow: StudyResult, policy: str) -> Check:
    """Against the raw rule."""
    rates = {each.name: each.groups_per_s.mean for each in slow.policies}
    return Check(name=f"{load}: against {RAW}, switches of 3 s", value=rates[policy] / rates[RAW], bar=1.10)


def check_table(checks: Sequence[Check]) -> Table:
    """A row a check."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("check", "value", "bar", ""):
        table.add_column(heading, justify="left" if heading == "check" else "right")
    for check in checks:
        sign = "≥" if check.at_least else "≤"
        table.add_row(check.name, f"{check.value:.4g}", f"{sign} {check.bar:g}", "ok" if check.met else "missed")
    return table


def run_validation(parsed: argparse.Namespace) -> int:
    """Real runs beside simulated ones."""
    runs, checks = validate(Path(parsed.folder or tempfile.mkdtemp(prefix="validation-")).absolute(), parsed.case)
    num_met = sum(check["met"] for check in checks[:-1])
    print(f"{num_met} of {checks[-1]['value']} runs that count are within {MAX_ERROR:.0%}")
    if parsed.json:
        parsed.json.write_text(json.dumps({**circumstances(), "runs": runs, "checks": checks}, indent=1) + "\n")
    return 0 if all(check["met"] for check in checks) else 1


def main(arguments: Sequence[str]) -> int:
    """Simulate, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", nargs="+", default=list(LOADS), choices=list(LOADS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--policy", default=DEFAULT, help=f"to compare; the first is judged ({DEFAULT})")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where runs are kept, and found again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--validate", action="store_true", help="compare with real paced runs instead")
    parser.add_argument("--case", nargs="+", default=[], choices=[case.name for case in CASES], metavar="NAME")
    parsed = parser.parse_args(arguments)
    if parsed.validate:
        return run_validation(parsed)
    judged = parsed.policy.split(",")[0]
    run = kept_runs(parsed.folder) if parsed.folder else None
    console, checks, data = Console(width=112), list[Check](), {}
    for load in parsed.load:
        usual, slow = run_load(parsed, load, run)
        for title, result in ((load, usual), (f"{load}, switches of 3 s", slow)):
            console.print(f"\n{title}", style="bold")
            console.print(study_table(result))
            data[title] = study_data(result)
        checks += [*load_checks(load, usual, judged), raw_check(load, slow, judged)]
    manager = POLICY_CONFIGS[judged]()
    checks += [
        Check(name="one decision, 1,000 GPUs, s", value=decision_s(manager), bar=MAX_DECISION_S, at_least=False),
        Check(name="times real time, 12 GPUs", value=speed(1, 1.0, manager), bar=MIN_SPEED),
    ]
    large = speed(83, 0.02, StaticConfig())
    console.print(check_table(checks))
    console.print(f"times real time, 996 GPUs: {large:.1f}")
    if parsed.json:
        found = [check.line() for check in checks]
        written = {**circumstances(), "loads": data, "checks": found, "speed_996_gpus": large}
        parsed.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0 if all(check.met for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
