"""A run that asks a real autoscaler of Ray for nodes while prompts wait, and gives them back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autoscaling_cluster import AutoscalingCluster
from ray_clusters import ENVIRONMENT
from runs import DEADLINE_S, Run, Workplace

pytestmark = pytest.mark.slow

PRICES = """
currency: EUR
date: 2026-11-01
per_hour: {cpu-a: 1.0, cpu-b: 2.0}
"""
BUDGET = 6.5
"""Of an hour: two slots of the head, and two more, though three are allowed and the cluster has four."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscalingCluster]:
    kinds = {"small": {"resources": {"CPU": 1, "cpu-b": 1}, "max_workers": 4}}
    cluster = AutoscalingCluster(tmp_path_factory.mktemp("cluster"), {"cpu-a": 2}, kinds, idle_s=3.0)
    yield cluster
    cluster.close()


def growing(cluster: AutoscalingCluster, prices: Path) -> dict[str, Any]:
    """One prompt group fits a replica, so the others wait for one, and the trainer for them."""
    return {
        "num_steps": 100_000,
        "launch": {"kind": "cluster", "address": cluster.address},
        "pool": {
            "slots": [
                {"type": "cpu-a", "count": 1, "prefer": "train"},
                {"type": "cpu-a", "count": 1, "prefer": "rollout"},
            ]
        },
        "manager": {"interval_s": 0.2},
        "rollout": {"engine": {"max_num_sequences": 2}, "max_tokens": 48},
        "reward": {"timeout_s": DEADLINE_S},
        "cost": {"prices": str(prices)},
        "scale_out": {
            "max_slots": {"cpu-b": 3},
            "money_per_hour": BUDGET,
            "grow_after_s": 0.0,
            "shrink_after_s": 10.0,
            "cooldown_s": 0.0,
        },
    }


def owners(run: Run) -> list[str]:
    """Of the slots that the run did not begin with."""
    return [owner for slot_id, owner in run.owners().items() if slot_id.startswith("cpu-b")]


def test_a_run_grows_while_prompts_wait_and_shrinks_when_none_do_within_ceiling_and_budget(
    workplace: Workplace, cluster: AutoscalingCluster, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    run = workplace.start("grown", growing(cluster, prices), environment=ENVIRONMENT)
    run.wait_until(lambda: owners(run).count("rollout") == 2, "two more slots")
    workplace.hold()  # no answer is scored, so none that is admitted waits for long
    run.wait_until(lambda: set(owners(run)) == {"gone"}, "the slots given back")
    deadline = time.monotonic() + DEADLINE_S
    while len(cluster.nodes()) > 1:
        assert time.monotonic() < deadline, "the nodes do not end"
    workplace.release()
    run.wait_until(lambda: run.events("scale_out")[-1]["asked"] == {"cpu-b": 2}, "another request")
    in_words = "scale_out.money_per_hour"
    run.wait_until(lambda: any(in_words in event["reason"] for event in run.events("scale_out")), "the budget's word")
    run.interrupt()
    assert run.wait() == 130, run.output
    assert "Traceback" not in run.output
    events = run.events("scale_out")
    assert max(event["asked"]["cpu-b"] for event in events) == 2
    assert all(event["money_per_hour"] <= BUDGET for event in events)
    assert run.events("failure") == []
