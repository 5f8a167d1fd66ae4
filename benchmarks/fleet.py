"""1,000 GPUs for a week, with rollout on spot machines: what a million trained tokens cost against on demand.

python benchmarks/fleet.py [--traces FILE …] [--days 7] [--seeds 3] [--jobs 2] [--json FILE]

125 gangs of 8 H100 train a 70B model. On demand, the split is the best of those tried on six hours. On spot machines,
``--num-spot`` gangs come from zones that have them or not: as traces say (those of github.com/skypilot-org/spot-traces
are read as they are, each seed from a moment of its own), or else by chance. Trainers are never on spot. A spot machine
costs ``--spot-factor`` of one on demand, from its start until it is gone, and gives notice of 30 s. Costs are hours of
a GPU on demand; intervals are over seeds (bootstrap, 95 %).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from checks import Check
from machine import circumstances
from rich.console import Console
from rich.table import Table

from rlserve.manager.config import ManagerConfig, RateMatchingConfig, StaticConfig
from rlserve.manager.policies.base import GangView
from rlserve.rollout.workload.courses import Steady
from rlserve.rollout.workload.lengths import LogNormalLengths
from rlserve.rollout.workload.workload import Workload
from rlserve.roofline.accelerators import SPOT_SUFFIX
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import model_shape
from rlserve.simulate.costs.roofline import RooflineCosts
from rlserve.simulate.intervals import Estimate, estimate
from rlserve.simulate.markets.base import Availability, Zone, spread
from rlserve.simulate.markets.generated import MarketFigures, generate_availability
from rlserve.simulate.markets.traces import read_availability
from rlserve.simulate.purchase import make_gangs
from rlserve.simulate.scenario import LossRates, Scenario
from rlserve.simulate.simulation import SimulatedRun
from rlserve.simulate.study import Job, cost_per_million, run_job
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.cost.uses import Use

GPU, GANG_SIZE, NUM_GANGS = "H100", 8, 125
SPLITS = (80, 90, 100)
"""Rollout gangs of the on-demand fleet that are tried."""
STATIC, MOVING = StaticConfig(interval_s=60.0), RateMatchingConfig(interval_s=60.0)
_DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is compared."""

    name: str
    num_spot: int
    """Gangs, of :data:`NUM_GANGS`."""
    num_rollout: int
    manager: ManagerConfig


def gangs(num_spot: int) -> tuple[GangView, ...]:
    """Those on demand, and those on spot machines."""
    return make_gangs({GPU: NUM_GANGS - num_spot, GPU + SPOT_SUFFIX: num_spot}, GANG_SIZE)


def zones(num_spot: int, places: Mapping[str, Availability], seed: int) -> tuple[Zone, ...]:
    """Spot gangs, spread evenly over places; each seed begins at another moment of their traces."""
    if not num_spot:
        return ()
    ids = [gang.id for gang in gangs(num_spot) if not gang.may_train]
    chance = random.Random(f"{seed} begin")
    return tuple(
        replace(zone, offset_s=chance.uniform(0.0, zone.availability.duration_s)) for zone in spread(ids, places)
    )


def scenario(fleet: Fleet, places: Mapping[str, Availability], *, days: float, seed: int) -> Scenario:
    """A 70B model, answers of 8,000 tokens in the median, 512 prompts of 8 answers a step, 7 of 10 groups kept."""
    lengths = LogNormalLengths(median_tokens=Steady(8000.0), sigma=0.75)
    return Scenario(
        gangs=gangs(fleet.num_spot),
        workload=Workload(lengths=lengths, kept=Steady(0.7), num_steps=1),
        max_tokens=32_768,
        costs=RooflineCosts(roofline=Costs(shape=model_shape("70B"), tensor_parallel_size=GANG_SIZE)),
        prompts_per_step=512,
        max_staleness=4,
        max_num_sequences=192,
        num_initial_rollout=fleet.num_rollout,
        duration_s=_DAY_S * days,
        losses=LossRates(grace_s=30.0, machine_start_s=180.0),
        zones=zones(fleet.num_spot, places, seed),
    )


def run_seed(given: tuple[Fleet, Mapping[str, Availability], float, int]) -> SimulatedRun:
    """One run of a fleet."""
    fleet, places, days, seed = given
    return run_job(Job(scenario=scenario(fleet, places, days=days, seed=seed), manager=fleet.manager, seed=seed))


def cost_on_demand(run: SimulatedRun, spot_factor: float) -> float:
    """Hours of a GPU on demand for a million trained tokens."""
    prices = Prices(currency="h", date="", per_hour={GPU: 1.0, GPU + SPOT_SUFFIX: spot_factor})
    return cost_per_million(run, prices)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fleet over all seeds, the last two seed by seed against the on-demand fleet."""

    name: str
    cost_per_million: Estimate
    gpu_hours: Estimate
    moves_per_hour: Estimate
    notices_per_day: Estimate
    late_share: Estimate
    """Of the notices, gangs that were not empty in time."""
    lost_share: Estimate
    """Of all time, what was lost."""
    useful_share: Estimate
    throughput: Estimate
    cost: Estimate


def row(fleet: Fleet, runs: Sequence[SimulatedRun], on_demand: Sequence[SimulatedRun], spot_factor: float) -> Row:
    """Sum a fleet's runs up."""
    costs = [cost_on_demand(run, spot_factor) for run in runs]
    pairs = list(zip(runs, on_demand, strict=True))
    return Row(
        name=fleet.name,
        cost_per_million=estimate(costs),
        gpu_hours=estimate([run.spent.gpu_hours for run in runs]),
        moves_per_hour=estimate([run.moves_per_hour for run in runs]),
        notices_per_day=estimate([run.num_notices / run.duration_s * _DAY_S for run in runs]),
        late_share=estimate([run.num_late / max(run.num_notices, 1) for run in runs]),
        lost_share=estimate([run.spent.hours_of(Use.LOST) / run.spent.gpu_hours for run in runs]),
        useful_share=estimate([run.spent.useful_share or 0.0 for run in runs]),
        throughput=estimate([run.groups_per_s / base.groups_per_s for run, base in pairs]),
        cost=estimate([cost / cost_on_demand(base, spot_factor) for cost, (_, base) in zip(costs, pairs, strict=True)]),
    )


def table(rows: Sequence[Row]) -> Table:
    """A row a fleet."""
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("fleet", "cost", "throughput", "h/1M", "useful", "lost", "moves/h", "notices/day", "late"):
        found.add_column(heading, justify="left" if heading == "fleet" else "right", no_wrap=True)
    for each in rows:
        found.add_row(
            each.name,
            f"{each.cost.mean:.3f} ({each.cost.low:.3f}-{each.cost.high:.3f})",
            f"{each.throughput.mean:.3f} ({each.throughput.low:.3f}-{each.throughput.high:.3f})",
            f"{each.cost_per_million.mean:.3f}",
            f"{each.useful_share.mean:.1%}",
            f"{each.lost_share.mean:.2%}",
            f"{each.moves_per_hour.mean:.1f}",
            f"{each.notices_per_day.mean:.0f}",
            f"{each.late_share.mean:.1%}",
        )
    return found


def checks(rows: Mapping[str, Row]) -> list[Check]:
    """Spot machines must pay, beyond doubt; and moves must pay on them."""
    static, moving = rows["spot, static"], rows["spot, moves"]
    return [
        Check(name="cost against on demand, upper end", value=moving.cost.high, bar=1.0, at_least=False),
        Check(name="throughput, moves against static", value=moving.throughput.mean / static.throughput.mean, bar=1.0),
        Check(name="share of time that is lost", value=moving.lost_share.mean, bar=0.01, at_least=False),
    ]


def places_of(parsed: argparse.Namespace) -> dict[str, Availability]:
    """From the traces, or by chance."""
    if parsed.traces:
        return {path.stem: read_availability(path) for path in parsed.traces}
    duration_s = 10 * _DAY_S * parsed.days
    return {
        f"zone {number}": generate_availability(MarketFigures(), duration_s=duration_s, seed=f"zone {number}")
        for number in range(parsed.zones)
    }


def main(arguments: Sequence[str]) -> int:
    """Simulate, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, nargs="+", default=[], metavar="FILE", help="one a zone")
    parser.add_argument("--zones", type=int, default=6, help="of a market by chance (6)")
    parser.add_argument("--num-spot", type=int, default=75, help=f"gangs on spot machines, of {NUM_GANGS} (75)")
    parser.add_argument("--spot-factor", type=float, default=0.4, help="price of a spot machine (0.4 of on demand)")
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    places = places_of(parsed)
    with ProcessPoolExecutor(parsed.jobs) as executor:
        tried = [Fleet(name="on demand", num_spot=0, num_rollout=number, manager=STATIC) for number in SPLITS]
        days = [run.groups_per_s for run in executor.map(run_seed, [(fleet, {}, 0.25, 0) for fleet in tried])]
        base = tried[days.index(max(days))]
        spot = Fleet(name="spot, static", num_spot=parsed.num_spot, num_rollout=base.num_rollout, manager=STATIC)
        fleets = (base, spot, replace(spot, name="spot, moves", manager=MOVING))
        given = [(fleet, places, parsed.days, seed) for fleet in fleets for seed in range(parsed.seeds)]
        done = list(executor.map(run_seed, given))
    runs = [done[index * parsed.seeds : (index + 1) * parsed.seeds] for index in range(len(fleets))]
    rows = {fleet.name: row(fleet, each, runs[0], parsed.spot_factor) for fleet, each in zip(fleets, runs, strict=True)}
    console = Console(width=132)
    console.print(table(list(rows.values())))
    found = checks(rows)
    for check in found:
        sign = "≥" if check.at_least else "≤"
        console.print(
            f"{'ok    ' if check.met else 'missed'}  {check.name}: {check.value:.4g} (bar {sign} {check.bar:g})"
        )
    if parsed.json:
        parsed.json.write_text(json.dumps(_data(parsed, places, base, rows, done, found), indent=1) + "\n")
    return 0 if all(check.met for check in found) else 1


def _data(
    parsed: argparse.Namespace,
    places: Mapping[str, Availability],
    base: Fleet,
    rows: Mapping[str, Row],
    runs: Sequence[SimulatedRun],
    found: Sequence[Check],
) -> dict[str, Any]:
    return {
        **circumstances(),
        "days": parsed.days,
        "seeds": parsed.seeds,
        "num_gpus": NUM_GANGS * GANG_SIZE,
        "num_spot_gpus": parsed.num_spot * GANG_SIZE,
        "spot_factor": parsed.spot_factor,
        "num_rollout_gangs": base.num_rollout,
        "mean_availability": {name: place.mean_share for name, place in places.items()},
        "fleets": {name: asdict(each) for name, each in rows.items()},
        "times_real_time": sum(run.duration_s for run in runs) / sum(run.host_s for run in runs),
        "checks": [check.line() for check in found],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
