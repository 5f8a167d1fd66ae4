"""``rlserve simulate serve``: how many replicas a server would have under a load, on a virtual clock."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.cli.numbers import at_least_one, positive
from rlserve.errors import UserError

if TYPE_CHECKING:
    from rlserve.serving.config import ServeConfig
    from rlserve.serving.scaling.targets import TargetTracking
    from rlserve.simulate.server.load import ServedRequest
    from rlserve.simulate.server.simulation import ServerScenario

_TABLE_WIDTH = 112
_EXAMPLES = """\
examples:
  rlserve simulate serve conf/serve.yaml scaling.enabled=true --gpu H100 --model 8B --rate 2/20x6 --hours 2
  rlserve simulate serve conf/serve.yaml scaling.enabled=true scaling.max_replicas=8 --requests trace.jsonl --price 2.5

schedules, for --rate (requests a second):  4 steady   1..20 rises   2/20x6 square wave of six phases
"""


def run(arguments: Sequence[str]) -> int:
    """Simulate, and print the table."""
    parsed = _parser().parse_intermixed_args(arguments)
    from rich.console import Console

    from rlserve.config.serving import load_serving
    from rlserve.simulate.server.study import Deadlines, server_table, study_server

    config = load_serving(parsed.config[0], parsed.config[1:])
    scenario, policy = _scenario(parsed, config)
    deadlines = Deadlines(time_to_first_token_s=parsed.ttft, time_per_output_token_s=parsed.tpot)
    num_gpus = config.engine.tensor_parallel_size
    rows = study_server(
        scenario, policy, deadlines, num_gpus=num_gpus, price=parsed.price, fixed=range(1, scenario.most + 1)
    )
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(server_table(rows))
    if parsed.json is not None:
        try:
            parsed.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{parsed.json} cannot be written: {error.strerror}") from error
    return 0


def _scenario(parsed: argparse.Namespace, config: ServeConfig) -> tuple[ServerScenario, TargetTracking | None]:
    from rlserve.roofline.accelerators import slot_type
    from rlserve.roofline.costs import Costs
    from rlserve.roofline.model_shapes import model_shape
    from rlserve.serving.scaling.targets import TargetTracking
    from rlserve.simulate.server.simulation import ServerScenario

    scaling = config.scaling
    most = max(config.num_replicas, (scaling.max_replicas or parsed.most) if scaling.enabled else config.num_replicas)
    scenario = ServerScenario(
        requests=_requests(parsed),
        costs=Costs(shape=model_shape(parsed.model), tensor_parallel_size=config.engine.tensor_parallel_size),
        slot_type=slot_type(parsed.gpu),
        engine=config.engine,
        routing=config.routing,
        num_replicas=config.num_replicas,
        most=most,
        start_s=parsed.start,
        interval_s=scaling.interval_s,
    )
    return scenario, TargetTracking(scaling) if scaling.enabled else None


def _requests(parsed: argparse.Namespace) -> list[ServedRequest]:
    from rlserve.rollout.workload.courses import parse_course
    from rlserve.simulate.server.load import draw_requests, read_requests

    if parsed.requests is not None:
        return read_requests(parsed.requests)
    requests = draw_requests(
        parse_course(parsed.rate),
        3600 * parsed.hours,
        num_prompt_tokens=parsed.prompt_tokens,
        num_answer_tokens=parsed.answer_tokens,
        seed=parsed.seed,
    )
    if not requests:
        raise UserError(f"--rate={parsed.rate} over --hours={parsed.hours:g} brings no request")
    return requests


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve simulate serve",
        usage="rlserve simulate serve CONFIG [key=value ...] [options]",
        description="Put a load on the replicas of a server's configuration on a virtual clock, scaled as it says and "
        "with each fixed number of them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG [key=value ...]", help="as for rlserve serve")
    parser.add_argument("--requests", type=Path, metavar="FILE", help="a recorded trace, as rlserve bench takes it")
    parser.add_argument("--rate", default="4", metavar="SCHEDULE", help="else: requests a second (4)")
    parser.add_argument("--hours", type=positive, default=1.0, help="of them (1)")
    parser.add_argument("--prompt-tokens", type=at_least_one, default=512, metavar="N", help="of a prompt (512)")
    parser.add_argument("--answer-tokens", type=positive, default=256.0, metavar="N", help="in the mean (256)")
    parser.add_argument("--model", default="8B", metavar="SIZE", help="whose costs are taken (8B)")
    parser.add_argument("--gpu", default="H100", metavar="TYPE", help="of the replicas (H100)")
    parser.add_argument("--start", type=positive, default=60.0, metavar="S", help="that a replica takes to load (60)")
    parser.add_argument("--most", type=at_least_one, default=8, metavar="N", help="without scaling.max_replicas (8)")
    parser.add_argument("--ttft", type=positive, default=2.0, metavar="S", help="deadline of the first token (2)")
    parser.add_argument("--tpot", type=positive, default=0.1, metavar="S", help="of each after it, in the mean (0.1)")
    parser.add_argument("--price", type=positive, help="of a GPU for an hour, in any currency")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, and each change, there")
    return parser
