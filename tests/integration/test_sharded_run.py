"""A run whose trainers are cut up, and whose engine is: no process has the whole model but to read it."""

from __future__ import annotations

import json

import pytest
import torch
from runs import Workplace, saved_state
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow


def test_two_trainers_each_send_their_part_to_an_engine_of_two_ranks(workplace: Workplace) -> None:
    changes = {
        "rollout": {"engine": {"tensor_parallel_size": 2}, "max_staleness": 0},
        "trainer": {"sharding": "full"},
        "weights": {"canary": {"num_prompts": 0}},
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
    policy = run.folder / "checkpoints" / "step_000003" / "policy"
    index = json.loads((policy / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2
    loaded = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).state_dict()
    state = saved_state(policy.parent)
    assert all(torch.equal(loaded[name], state[f"policy.{name}"]) for name in index["weight_map"])
