"""A run whose trainers are cut up, and whose engine is: no process has the whole model but to read it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from runs import Workplace, saved_state
from transformers import AutoModelForCausalLM

from rlserve.weights.canary import EXACT_TOLERANCE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param({"sharding": "full"}, id="fully_shard"),
        pytest.param(
            {"backend": "deepspeed", "zero_stage": 3},
            id="zero-3",
            marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
        ),
    ],
)
def test_two_trainers_each_send_their_part_to_an_engine_of_two_ranks(
    workplace: Workplace, trainer: dict[str, Any]
) -> None:
    changes = {
        "rollout": {"engine": {"tensor_parallel_size": 2}, "max_staleness": 0},
        "trainer": trainer,
        "checkpoint": {"every_steps": 3},
        "pool": {
            "slots": [
                {"type": "cpu-a", "count": 2, "prefer": "train"},
                {"type": "cpu-b", "count": 2, "prefer": "rollout"},
            ]
        },
    }
    run = workplace.start("sharded", changes)
    assert run.wait() == 0, run.output
    taken = [event["version"] for event in run.events("weights") if event["slot_id"] == "cpu-b/0"]
    assert taken == sorted(taken)
    assert (taken[0], taken[-1]) == (0, 3)
    steps = run.lines("metrics.jsonl")
    differences = [line["training/log_prob_diff_max"] for line in steps if "training/log_prob_diff_max" in line]
    assert len(differences) == 3
    assert max(differences) < 1e-4, "the engine had the trainers' weights"
    canaries = [line["weights/canary_difference_max"] for line in steps if "weights/canary_difference_max" in line]
    assert canaries, "both scored it, the trainers together"
    assert max(canaries) < EXACT_TOLERANCE
    policy = run.folder / "checkpoints" / "step_000003" / "policy"
    index = json.loads((policy / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2
    loaded = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).state_dict()
    state = saved_state(policy.parent)
    assert all(torch.equal(loaded[name], state[f"policy.{name}"]) for name in index["weight_map"])
