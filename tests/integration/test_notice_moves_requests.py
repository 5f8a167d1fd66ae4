"""A spot machine's notice to a busy replica whose requests must move: they end elsewhere, token for token."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import write_model
from runs import Run, Workplace
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.slow

GRACE_S = 30
LENGTH = 600
"""Tokens of every answer."""
ROOM = 4
"""Samples that a replica computes at once: half of a step's, so both have some."""
SLOW = {"hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 1024, "num_hidden_layers": 30}
"""A model that takes seconds for an answer, many times longer than requests take to be handed over."""
LONG: dict[str, Any] = {
    "num_steps": 1,
    "rollout": {
        "max_tokens": LENGTH,
        "temperature": 1e-3,  # the most likely token, so that answers of two runs can be compared
        "engine": {"num_blocks": 1_024, "max_num_sequences": ROOM, "max_model_len": LENGTH + 64},
    },
    "data": {"num_held_out": 1},
    "pool": {
        "slots": [{"type": "cpu-a", "count": 1, "prefer": "train"}, {"type": "cpu-b", "count": 2, "prefer": "rollout"}]
    },
    "tracking": {"samples": "all"},
}


@pytest.fixture
def long_workplace(tmp_path: Path, prompts: Path) -> Workplace:
    model = write_model(tmp_path / "long")
    torch.manual_seed(0)
    layers = {"layer_types": ["full_attention"] * SLOW["num_hidden_layers"]}
    config = AutoConfig.from_pretrained(model, **SLOW, **layers)
    slow = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        slow.lm_head.weight[config.eos_token_id] = 0.0  # never the most likely: all answers have their full length
    slow.save_pretrained(model)
    return Workplace(tmp_path, model, prompts)


def answers(run: Run) -> dict[tuple[str, int], tuple[str, int]]:
    """Text and number of tokens of each."""
    return {
        (line["group_id"], line["index"]): (line["response"], line["num_response_tokens"])
        for line in run.lines("answers.jsonl")
        if line["kind"] == "training"
    }


def is_full(run: Run, slot_id: str) -> bool:
    """Whether a replica computes as many samples of the first step as it may."""
    path, stages = run.folder / "live.json", {event["stage"]: event["time_s"] for event in run.events("stage")}
    if "training" not in stages or not path.exists():
        return False
    live = json.loads(path.read_text())
    num_running = {gang["id"]: gang["num_running"] for gang in live["gangs"]}
    return live["time_s"] > stages["training"] and num_running.get(slot_id) == ROOM


def test_a_busy_replica_is_emptied_and_its_requests_end_elsewhere_token_for_token(long_workplace: Workplace) -> None:
    try:
        left = long_workplace.start("left", LONG)
        left.wait_until(lambda: is_full(left, "cpu-b/1"), "a busy replica")
        begun_s = time.monotonic()
        (left.folder / "notices").write_text(f"cpu-b/1 {GRACE_S}\n")
        left.wait_until(lambda: left.owners()["cpu-b/1"] == "gone", "the replica emptied")
        emptied_s = time.monotonic() - begun_s
        assert left.wait() == 0, left.output
        stayed = long_workplace.start("stayed", LONG)
        assert stayed.wait() == 0, stayed.output
    finally:
        long_workplace.end()
    sys.stdout.write(f"empty {emptied_s:.2f} s after the notice\n")
    (trained,) = left.lines("samples.jsonl")
    assert sum(trained["attempts"]) > 0, "no request had to move"
    assert left.events("lost_work") == left.events("failure") == []
    assert answers(left) == answers(stayed)
    before = [line for line in left.lines("answers.jsonl") if line["step"] == 0]
    lengths = [*(count for _, count in answers(left).values()), *(line["num_response_tokens"] for line in before)]
    (step,) = [line for line in left.lines("metrics.jsonl") if "response_length/mean" in line]
    assert step["vllm:generation_tokens"] == sum(lengths), "tokens were generated twice"
