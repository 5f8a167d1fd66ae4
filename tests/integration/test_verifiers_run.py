"""A run on an environment of the verifiers package: its prompts, its turns, and its rubric as the reward."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from runs import SMALL, Run, merged
from transformers import AutoTokenizer
from verifiers_environments import write_modules

pytest.importorskip("verifiers", reason="needs pip install 'rlserve[verifiers]'")
pytestmark = pytest.mark.slow

TEMPLATE = "{% for message in messages %}{{ message.role[0] }} {{ message.content }}= {% endfor %}a "


STOPS = list("0123456789aeiou ")
"""A model that says anything comes to one of them soon, so that it has several turns."""


def test_the_turns_of_a_game_are_trained_on_and_its_rubric_is_the_reward(tmp_path: Path, tiny_model: Path) -> None:
    write_modules(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    changes = {
        "model": {"path": "model"},
        "data": {"path": "verifiers:vf-game", "apply_chat_template": True, "num_held_out": 1},
        "environment": {"name": "verifiers:vf-game", "options": {"max_turns": 3}, "num_workers": 1},
        "rollout": {"prompts_per_step": 2, "max_tokens": 96, "stop": STOPS},
        "num_steps": 2,
    }
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(merged(SMALL, changes)))
    run = Run(tmp_path, ["game.yaml", "name=game"], "game", {"RLSERVE_CACHE": str(tmp_path / "cache")})
    try:
        assert run.wait() == 0, run.output
    finally:
        run.end()
    steps = [line for line in run.lines("metrics.jsonl") if "rollout/num_turns/max" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(1 < line["rollout/num_turns/max"] <= 3 for line in steps)
    assert all(line["response_length/environment_share"] > 0 for line in steps)
    for line in steps:
        of_rubric = line["reward/found/mean"] - line["reward/num_wrong/mean"] / 8
        assert line["reward/environment/mean"] == line["critic/score/mean"] == pytest.approx(of_rubric)
    answers = [line["response"] for line in run.lines("answers.jsonl")]
    assert any("u a number= a " in answer for answer in answers), "the environment's message, as the template has it"
    assert "max_turns_reached" in (tmp_path / "cleaned").read_text()
