"""A run that is moved about, broken, killed and stopped at by chance: a short part of ``benchmarks/chaos.py``."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
from runs import Workplace

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from chaos_parts.base import PLANTED, Fault, Kind, State
from chaos_parts.injector import Injector
from chaos_parts.run_watch import RunWatch
from chaos_parts.verdict import judge

pytestmark = pytest.mark.slow

NUM_STEPS = 160
HEALTH_TIMEOUT_S = 6.0
SEED = 11
PLANTED_FAULTS = [Fault(kind=kind) for kind in PLANTED]
"""Done first, so that a quick machine comes to all of them."""
FAULTS = (
    *[Fault(kind=Kind.MOVE)] * 3,
    *(Fault(kind=Kind.KILL, state=state) for state in State if state is not State.ANY),
    Fault(kind=Kind.STOP, state=State.GENERATING),
    Fault(kind=Kind.STOP, state=State.STEP),
    Fault(kind=Kind.SLOW),
)


def test_nothing_is_lost_whatever_happens_to_the_workers(workplace: Workplace) -> None:
    config = workplace.config(
        {
            "num_steps": NUM_STEPS,
            "rollout": {"max_tokens": 128},
            "pool": {
                "slots": [
                    {"type": "cpu-a", "count": 2, "prefer": "train"},
                    {"type": "cpu-b", "count": 2, "prefer": "rollout"},
                ],
                "health_timeout_s": HEALTH_TIMEOUT_S,
                "max_worker_failures": 1000,
                "move_hold_s": 0.0,
            },
        }
    )
    folder = workplace.place / "chaos"
    watch = RunWatch(folder, [str(config), "name=chaos", f"output_dir={folder.parent}"])
    try:
        faults = [*PLANTED_FAULTS, *random.Random(SEED).sample(FAULTS, len(FAULTS))]
        injector = Injector(watch, faults, seed=SEED)
        injector.run(last_step=NUM_STEPS - 5, limit=len(faults))
        assert watch.process.wait(150.0) == 0, watch.output
        ended_s = time.monotonic()
        assert watch.num_left(30.0) == 0
    finally:
        watch.end()
    verdict = judge(folder)
    assert (verdict.num_lost, verdict.num_trained_twice, verdict.num_too_stale) == (0, 0, 0)
    assert (verdict.num_without_version, verdict.num_versions_back, verdict.num_illegal) == (0, 0, 0)
    assert {injury.fault.kind for injury in injector.injuries} >= {Kind.KILL, *PLANTED}, injector.injuries
    for injury in injector.injuries:
        match injury.fault.kind:
            case Kind.SLOW:
                assert injury.found_s is None, injury
            case Kind.STOP if ended_s - injury.done_s < 2 * HEALTH_TIMEOUT_S:
                pass  # the run may have ended before it was silent for long enough
            case _:
                assert injury.found_s is not None, injury
