"""Everything that a user can get wrong: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Workplace

STARTS_RAY = "starting Ray"


def refuse(workplace: Workplace, changes: dict[str, Any], *expected: str, words: tuple[str, ...] = ()) -> None:
    """The run ends with exit code 2 and a message that holds ``expected``, before Ray is started."""
    run = workplace.start("bad", changes, *words)
    assert run.wait() == 2, run.output
    for text in expected:
        assert text in run.output
    assert "Traceback" not in run.output
    assert STARTS_RAY not in run.output


def test_an_unknown_key(workplace: Workplace) -> None:
    refuse(workplace, {}, "rollout.max_token", "did you mean rollout.max_tokens?", words=("rollout.max_token=5",))


def test_a_value_out_of_range(workplace: Workplace) -> None:
    refuse(workplace, {"rollout": {"top_p": 1.5}}, "rollout.top_p", "must be in (0, 1], got 1.5")


def test_an_impossible_split(workplace: Workplace) -> None:
    refuse(workplace, {"pool": {"num_initial_rollout": 2}}, "pool.num_initial_rollout", "of the 2 slots")


def test_a_folder_that_is_no_model(workplace: Workplace) -> None:
    empty = workplace.place / "empty"
    empty.mkdir()
    refuse(workplace, {"model": {"path": str(empty)}}, str(empty), "config.json")


def test_an_unsupported_architecture(workplace: Workplace, tiny_model: Path) -> None:
    folder = workplace.place / "gpt2"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    changed = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
    }
    (folder / "config.json").write_text(json.dumps(changed))
    names = ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
    refuse(workplace, {"model": {"path": str(folder)}}, *names)


def test_a_broken_line_of_data(workplace: Workplace) -> None:
    path = workplace.place / "broken.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+2=", "ans\n')
    refuse(workplace, {"data": {"path": str(path)}}, f"{path}:2")


def test_a_missing_column(workplace: Workplace) -> None:
    path = workplace.place / "columns.jsonl"
    path.write_text('{"question": "1+1=", "answer": "2"}\n' * 8)
    refuse(workplace, {"data": {"path": str(path)}}, "prompt", "question")


def test_a_reward_that_is_not_there(workplace: Workplace) -> None:
    function = f"{workplace.place}/reward.py:score"
    refuse(workplace, {"reward": {"function": function}}, f"reward.function={function}", "has no 'score'")


FAILING_REWARD = """
def reward(sample):
    print("seen", sample.id)
    row = int(sample.id.split("/")[0].split(":")[1])
    if "/" not in sample.id:  # held out: one of them cannot be scored, and that ends nothing
        return {"score": 0.0, "row": row} if sample.response != sample.answer else 1 / (row % 2)
    if row % 3 == 0:
        raise KeyError("colour")
    return None if row % 3 == 1 else float("nan")
"""


@pytest.mark.slow
def test_a_reward_that_fails_in_every_way(workplace: Workplace) -> None:
    """Groups are dropped with a warning that names the prompt; when too many of them failed, the run stops."""
    (workplace.place / "failing.py").write_text(FAILING_REWARD)
    function = f"{workplace.place}/failing.py:reward"
    run = workplace.start("reward", {"reward": {"function": function, "max_failure_share": 0.0625}})
    assert run.wait() == 2, run.output
    assert re.search(r"failing\.py:8: 'colour'; its group is dropped \(\d of the last 32, 2 may be\)", run.output)
    assert re.search(r"returned nan \(float\) on prompt 0:\d+/0", run.output)
    assert "the reward failed for 3 of the last 32 prompt groups, more than reward.max_failure_share" in run.output
    assert "Traceback" not in run.output
    assert re.search(r"scorer-[01] seen 0:\d+/0$", (run.folder / "logs/reward.log").read_text(), re.MULTILINE)
    run.wait_for_no_processes()


@pytest.mark.slow
def test_a_loss_that_is_not_finite(workplace: Workplace) -> None:
    """A finite reward whose square is not: nothing of the step is applied, and its batch is kept."""
    (workplace.place / "huge.py").write_text("def reward(sample):\n    return 1.0e30\n")
    run = workplace.start("huge", {"reward": {"function": f"{workplace.place}/huge.py:reward"}})
    assert run.wait() == 2, run.output
    batch_file = run.folder / "failed_batch_step_1.npz"
    assert "step 1 is not finite and was not applied" in run.output
    assert str(batch_file) in run.output
    assert "Traceback" not in run.output
    with np.load(batch_file) as batch:
        assert len(batch["sample_ids"]) == 8
        assert batch["token_ids"].shape == (batch["prompt_lengths"].sum() + batch["response_lengths"].sum(),)
    assert run.num_steps() == 0


@pytest.mark.slow
def test_weights_that_are_not_finite(workplace: Workplace) -> None:
    """A learning rate that overflows the weights: the engine refuses to sample from them, and the run says so."""
    run = workplace.start("overflow", {"num_steps": 50, "trainer": {"learning_rate": 1.0e38}})
    assert run.wait() == 2, run.output
    assert "not finite" in run.output
    assert "Traceback" not in run.output
