"""Two real runs on one real Ray cluster of one node, which they share by priority and floor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import ENVIRONMENT, running_cluster
from runs import DEADLINE_S, Run, Workplace, merged

pytestmark = pytest.mark.slow

NUM_SLOTS = 5
NUM_STEPS = 4
CLUSTER = f"""
import sys
from ray.cluster_utils import Cluster
head = {{"resources": {{"cpu-a": {NUM_SLOTS}}}, "num_cpus": 1, "include_dashboard": False}}
head["dashboard_agent_listen_port"] = 0  # by the usual one, a run beside this one may have its own
head["_system_config"] = {{
    "worker_niceness": 0,  # at Ray's 15, any other load starves workers
    "prestart_worker_first_driver": False,  # ours are none of Ray's idle ones
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
}}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
REWARD = """
import time
from pathlib import Path

HELD, BEGUN = (Path(__file__).with_name(name) for name in ("held", "begun"))


def reward(sample):
    if sample.answer == "held out":
        BEGUN.touch()  # what is tried before that is no part of the run
    else:
        while HELD.exists() and BEGUN.exists():
            time.sleep(0.02)
    return len(set(sample.response)) / 10
"""
BROKERS = """
import json, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps([actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]))
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with five slots of one type."""
    with running_cluster(CLUSTER) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@pytest.fixture
def other_workplace(tmp_path: Path, tiny_model: Path, prompts: Path) -> Iterator[Workplace]:
    """With rewards that can be held by themselves."""
    (tmp_path / "other").mkdir()
    place = Workplace(tmp_path / "other", tiny_model, prompts)
    yield place
    place.end()


def start(workplace: Workplace, name: str, address: str, share: Mapping[str, Any], *words: str, **changes: Any) -> Run:
    """A run of which the first step can be held: held-out prompts, which come before it, have their rewards at once."""
    held_out = workplace.place / "held_out.jsonl"
    held_out.write_text("".join(f'{{"prompt": "{number}+1=", "answer": "held out"}}\n' for number in range(4)))
    (workplace.place / "reward.py").write_text(REWARD)
    shared = {
        "num_steps": NUM_STEPS,
        "data": {"held_out_path": str(held_out)},
        "launch": {"kind": "cluster", "address": address},
        "pool": {
            "slots": "auto",
            "num_initial_rollout": 1,
            "switch_timeout_s": 120.0,
            "share": {"enabled": True, **share},
        },
        "manager": {"interval_s": 0.2},
        "reward": {"timeout_s": DEADLINE_S},
        "checkpoint": {"every_steps": 1},
    }
    return workplace.start(name, merged(shared, changes), *words, environment=ENVIRONMENT)


def start_first(workplace: Workplace, address: str) -> Run:
    """A run alone on the cluster: three gangs roll out and two train."""
    run = start(workplace, "first", address, {"priority": 0}, pool={"num_initial_rollout": 3})
    run.wait_until(lambda: num_held(run) == NUM_SLOTS and bool(run.events("share")), "all slots in use")
    return run


def num_held(run: Run) -> int:
    """Slots that a run has and does not empty."""
    return sum(owner in ("train", "rollout") for owner in run.owners().values())


def last_share(run: Run) -> dict[str, Any]:
    """How the run was told that the cluster is divided."""
    return run.events("share")[-1] if run.events("share") else {"num_lent": 0, "num_borrowed": 0}


def check_nothing_lost(run: Run) -> None:
    summary = json.loads((run.folder / "summary.json").read_text())
    trained = [group_id for line in run.lines("samples.jsonl") for group_id in line["group_ids"]]
    assert len(trained) == len(set(trained)) == summary["groups_trained"] == summary["groups_admitted"] == NUM_STEPS * 4
    assert run.events("failure") == []
    assert run.events("lost_work") == []
    assert "Traceback" not in run.output


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def brokers(address: str) -> list[str]:
    """Names of the cluster's detached actors."""
    command = [sys.executable, "-c", BROKERS, address]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_second_run_gets_its_floor_and_gives_it_back(
    workplace: Workplace, other_workplace: Workplace, address: str
) -> None:
    """The first has all slots, two of which train. The second gets its floor from those that roll out."""
    workplace.hold()
    first = start_first(workplace, address)
    other_workplace.hold()
    second = start(other_workplace, "second", address, {"priority": 1})
    second.wait_until(lambda: num_held(second) == 2, "the floor of the second")
    first.wait_until(lambda: last_share(first)["num_lent"] == 2, "the loan in the books of the first")
    second.wait_until(lambda: last_share(second)["num_borrowed"] == 2, "the loan in the books of the second")
    assert num_held(first) == NUM_SLOTS - 2
    assert list(first.owners().values()).count("train") == 2, "what trains is not lent"
    assert brokers(address) == ["rlserve_broker"]
    other_workplace.release()
    assert second.wait() == 0, second.output
    first.wait_until(lambda: num_held(first) == NUM_SLOTS, "all slots back")
    workplace.release()
    assert first.wait() == 0, first.output
    assert last_share(first)["num_lent"] == 0
    check_nothing_lost(first)
    check_nothing_lost(second)
    first.wait_for_no_processes()
    wait_until(lambda: brokers(address) == [], "the broker ended with the last run")


def test_what_a_killed_run_had_goes_back_and_both_finish(
    workplace: Workplace, other_workplace: Workplace, address: str
) -> None:
    """SIGKILL of the controller: Ray ends its workers, and the broker hears of it from Ray."""
    workplace.hold()
    first = start_first(workplace, address)
    other_workplace.hold()
    killed = start(other_workplace, "second", address, {"priority": 1})
    killed.wait_until(lambda: num_held(killed) == 2, "the floor of the second")
    killed.process.kill()
    killed.process.wait()
    first.wait_until(lambda: num_held(first) == NUM_SLOTS, "all slots back")
    assert last_share(first)["runs"] == {}
    other_workplace.release()
    second = start(other_workplace, "second", address, {"priority": 1}, "--continue")
    assert second.wait() == 0, second.output
    workplace.release()
    assert first.wait() == 0, first.output
    check_nothing_lost(first)
    check_nothing_lost(second)


def test_a_floor_that_does_not_fit_is_refused_with_what_to_do(
    workplace: Workplace, other_workplace: Workplace, address: str
) -> None:
    workplace.hold()
    first = start_first(workplace, address)
    second = start(other_workplace, "second", address, {"floor": 4, "wait_s": 1.0})
    assert second.wait() == 2, second.output
    assert "its floor is cpu-a × 4, and the floors of others leave less of cpu-a × 5: first cpu-a × 2" in second.output
    assert "ask for less (pool.share.floor), wait for longer, or end another run" in second.output
    assert "Traceback" not in second.output
    assert num_held(first) == NUM_SLOTS
    workplace.release()
    assert first.wait() == 0, first.output
