"""``rlserve simulate``: what a run would do with policies and splits, on a virtual clock."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.cli.numbers import at_least_one, not_negative, positive
from rlserve.errors import UserError

if TYPE_CHECKING:
    from rlserve.manager.config import ManagerConfig
    from rlserve.simulate.scenario import Scenario
    from rlserve.simulate.study import StudyResult

_TABLE_WIDTH = 112
_WIDTH_OF_GROWN = 16
"""More, where runs grow."""
_NUM_TRIED = 6
"""Pools that are simulated, of those that a sum pays for."""
_EXAMPLES = """\
examples:
  rlserve simulate conf/paced.yaml --policy rate_matching,queue_threshold
  rlserve simulate conf/rlhf.yaml pool=h100_h200 --policy static,queue_threshold --hours 2
  rlserve simulate conf/rlhf.yaml pool=h100_h200 --keep 1..0.4 --hours 2 --seeds 10
  rlserve simulate conf/rlhf.yaml pool=h100_h200 rollout.max_tokens=16384 --trace lengths.jsonl --json result.json
  rlserve simulate conf/rlhf.yaml 'pool.slots=[{type: H100, count: 8}, {type: H100-spot, count: 8}]' --hours 24 \\
      --spot-market us-east-2a.json,us-west-2b.json cost.prices=prices.yaml
  rlserve simulate conf/rlhf.yaml pool=h100_h200 --hours 2 --money-per-hour 30 cost.prices=prices.yaml

rlserve simulate serve --help: the replicas of a server, and how they are scaled

schedules, for --keep and --median:  0.7 steady   1..0.4 drifts over the run   1/0.4x6 square wave of six phases
"""


def run(arguments: Sequence[str]) -> int:
    """Simulate, and print the table."""
    if arguments[:1] == ["serve"]:
        from rlserve.cli.simulate_server import run as simulate_server

        return simulate_server(arguments[1:])
    parsed = _parser().parse_intermixed_args(arguments)
    scenario, policies = _scenario(parsed)
    if parsed.money_per_hour is not None:
        return _compare_pools(parsed, scenario, policies)
    result = _study(parsed, scenario, policies)
    from rich.console import Console

    from rlserve.simulate.table import study_data, study_table

    console = Console()
    grows = scenario.scale_out is not None
    console.width = max(console.width, _TABLE_WIDTH + _WIDTH_OF_GROWN * grows)
    console.print(study_table(result))
    console.print(f"fluid oracle: {result.oracle_groups_per_s:.3f} prompt groups/s", style="dim", highlight=False)
    if parsed.suggest:
        from rlserve.simulate.suggestion import suggest

        for line in suggest(scenario, result).lines:
            console.print(line, highlight=False)
    if parsed.timeline is not None:
        _draw(parsed.timeline, scenario, policies)
    if parsed.json is not None:
        _write(parsed.json, json.dumps(study_data(result), indent=1) + "\n")
    return 0


def _scenario(parsed: argparse.Namespace) -> tuple[Scenario, dict[str, ManagerConfig]]:
    from rlserve.config import load
    from rlserve.rollout.workload.courses import parse_course
    from rlserve.simulate.from_config import AnyNumber, Changes, build_scenario, choose_policies

    config = load(parsed.config[0], parsed.config[1:], discovered=AnyNumber()).config
    if not config.algorithm.needs.rollouts:
        raise UserError(f"algorithm.name={config.algorithm.name} generates nothing: all slots train, and nothing moves")
    changes = Changes(
        hours=parsed.hours,
        model=parsed.model,
        median=None if parsed.median is None else parse_course(parsed.median),
        sigma=parsed.sigma,
        kept=None if parsed.keep is None else parse_course(parsed.keep),
        num_prompt_tokens=parsed.prompt_tokens,
        trace=parsed.trace,
        costs=parsed.costs,
        failures_per_hour=parsed.failures_per_hour,
        notices_per_hour=parsed.notices_per_hour,
        spot_market=parsed.spot_market,
    )
    scenario = build_scenario(config, changes)
    return scenario, choose_policies(config, parsed.policy.split(",") if parsed.policy else ())


def _compare_pools(parsed: argparse.Namespace, scenario: Scenario, policies: dict[str, ManagerConfig]) -> int:
    """Pools that the sum pays for: the best few by the oracle, as the last policy named runs on them."""
    from rich.console import Console

    from rlserve.simulate.purchase import find_offers, try_offer
    from rlserve.simulate.table import offers_table

    if scenario.prices is None:
        raise UserError("--money-per-hour needs prices: cost.prices=prices.yaml")
    if parsed.hours is None:
        raise UserError("--money-per-hour compares pools over a time, not over steps: say --hours")
    types = parsed.types.split(",") if parsed.types else ()
    offers = find_offers(scenario, scenario.prices, money_per_hour=parsed.money_per_hour, types=types)
    manager = policies[list(policies)[-1]]
    tried = [
        try_offer(scenario, offer, manager, scenario.prices, seed=scenario.workload.seed)
        for offer in offers[:_NUM_TRIED]
    ]
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(offers_table(tried, scenario.prices.currency))
    if parsed.json is not None:
        _write(parsed.json, json.dumps([asdict(each) for each in tried], indent=1) + "\n")
    return 0


def _study(parsed: argparse.Namespace, scenario: Scenario, policies: dict[str, ManagerConfig]) -> StudyResult:
    from rlserve.simulate.study import Study

    jobs = min(parsed.jobs, parsed.seeds)
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as executor:
        first = scenario.workload.seed
        return Study(scenario, seeds=range(first, first + parsed.seeds), executor=executor).run(policies)


def _draw(path: Path, scenario: Scenario, policies: dict[str, ManagerConfig]) -> None:
    """The last policy that was asked for, with the first seed."""
    from rlserve.simulate.simulation import simulate
    from rlserve.simulate.timeline import write_timeline

    name = list(policies)[-1]
    write_timeline(
        scenario,
        simulate(scenario, policies[name], seed=scenario.workload.seed),
        path,
        title=f"{name}: who has which slot",
    )
    sys.stdout.write(f"{path}\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"{path}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve simulate",
        usage="rlserve simulate CONFIG [key=value ...] [options]",
        description="Run the policies of a configuration on a virtual clock, an hour in a second or so, and compare "
        "them with the fluid oracle and with the best static split in hindsight.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", nargs="+", metavar="CONFIG [key=value ...]", help="as for rlserve launch; no GPU is needed"
    )
    parser.add_argument("--policy", metavar="A,B", help="policies to compare; without it that of the configuration")
    parser.add_argument("--hours", type=positive, help="to simulate, in place of the steps of the configuration")
    parser.add_argument("--seeds", type=at_least_one, default=3, metavar="N", help="runs of each policy (3)")
    parser.add_argument("--model", metavar="SIZE", help="whose costs are taken, in place of pool.pacing.model (8B)")
    parser.add_argument("--keep", metavar="SCHEDULE", help="share of prompt groups that are kept (1)")
    parser.add_argument("--median", metavar="SCHEDULE", help="median length of answers (2000)")
    parser.add_argument("--sigma", type=not_negative, help="of the logarithm of lengths (1)")
    parser.add_argument("--prompt-tokens", type=at_least_one, metavar="N", help="of a prompt (256)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="lengths from a file instead")
    parser.add_argument("--costs", type=Path, metavar="RUN", help="take costs as the run in this folder recorded them")
    parser.add_argument("--failures-per-hour", type=not_negative, default=0.0, metavar="N", help="workers that die")
    parser.add_argument("--notices-per-hour", type=not_negative, default=0.0, metavar="N", help="nodes that leave")
    parser.add_argument(
        "--spot-market",
        metavar="FILE,…|N",
        help="when spot machines can be had: a trace a zone, or N zones by chance",
    )
    parser.add_argument(
        "--money-per-hour", type=positive, metavar="N", help="compare pools that this pays for, at cost.prices, instead"
    )
    parser.add_argument("--types", metavar="A,B", help="GPUs that such pools may have; without it all with a price")
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--suggest", action="store_true", help="propose a split, thresholds and a trainer size")
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="draw who did what when (png, svg or pdf)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    return parser
