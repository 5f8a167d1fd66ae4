"""Supervised fine-tuning, a reward model, and PPO against it: real processes, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from metric_names import spelled_out
from runs import SMALL, Run, merged, saved_state
from transformers import AutoModelForSequenceClassification

pytestmark = pytest.mark.slow

COMMON: Mapping[str, Any] = {part: SMALL[part] for part in ("trainer", "pool", "tracking", "launch")}


class Place:
    """Runs of one folder, which are ended at its end."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.runs: list[Run] = []
        sums = [(f"{number}+1=", str(number + 1), "no") for number in range(40)]
        self._write("completions", [{"prompt": prompt, "completion": right} for prompt, right, _ in sums])
        self._write("pairs", [{"prompt": prompt, "chosen": right, "rejected": wrong} for prompt, right, wrong in sums])
        self._common = {**COMMON, "model": {"path": str(model)}}

    def start(self, name: str, changes: Mapping[str, Any], *words: str) -> Run:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged(self._common, changes)))
        return self._run([str(path), f"name={name}", *words], name)

    def resume(self, name: str, *words: str) -> Run:
        return self._run(["--resume", name, *words], name)

    def _run(self, arguments: list[str], name: str) -> Run:
        run = Run(self.folder, arguments, name, {})
        self.runs.append(run)
        return run

    def _write(self, name: str, rows: list[dict[str, str]]) -> None:
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Iterator[Place]:
    made = Place(tmp_path, tiny_model)
    yield made
    for run in made.runs:
        run.end()


def sft(num_steps: int) -> dict[str, Any]:
    return {
        "data": {"path": "completions.jsonl", "num_held_out": 4},
        "algorithm": {"name": "sft", "batch_size": 8},
        "num_steps": num_steps,
        "evaluation": {"every_steps": 2},
        "checkpoint": {"every_steps": 2},
    }


def newest(run: Run) -> Path:
    return sorted(run.folder.glob("checkpoints/step_*"))[-1]


def test_a_resumed_run_has_the_bytes_of_one_that_was_never_stopped(place: Place) -> None:
    whole = place.start("whole", sft(6))
    assert whole.wait() == 0, whole.output
    part = place.start("part", sft(3))
    assert part.wait() == 0, part.output
    part = place.resume("part", "num_steps=6")
    assert part.wait() == 0, part.output
    expected, found = saved_state(newest(whole)), saved_state(newest(part))
    assert int(expected["counters"][0]) == 6
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    losses = [{line["step"]: line["val/loss"] for line in run.lines("metrics.jsonl") if "val/loss" in line}
              for run in (whole, part)]  # fmt: skip
    assert losses[0][0] > losses[0][6] == losses[1][6]


def test_models_that_are_cut_up_learn_the_same_by_every_backend(place: Place) -> None:
    full = place.start("full", sft(2), "trainer.sharding=full")
    assert full.wait() == 0, full.output
    zero = place.start("zero", sft(2), "trainer.backend=deepspeed", "trainer.zero_stage=3")
    assert zero.wait() == 0, zero.output
    losses, others = (
        [line["val/loss"] for line in run.lines("metrics.jsonl") if "val/loss" in line] for run in (full, zero)
    )
    assert losses[0] > losses[-1]
    assert losses == pytest.approx(others, abs=1e-4)


def test_adapters_learn_completions_and_to_judge_them(place: Place) -> None:
    tuned = place.start("tuned", sft(2), "trainer.lora.rank=4")
    assert tuned.wait() == 0, tuned.output
    assert (newest(tuned) / "policy" / "adapter_model.safetensors").is_file()
    changes = {
        "data": {"path": "pairs.jsonl", "num_held_out": 8},
        "trainer": {"learning_rate": 1.0e-2},
        "algorithm": {"name": "reward_model", "batch_size": 16, "num_train_epochs": 2},
    }
    judge = place.start("judge", changes, "trainer.lora.rank=4")
    assert judge.wait() == 0, judge.output
    for run in (tuned, judge):
        losses = [line["val/loss"] for line in run.lines("metrics.jsonl") if "val/loss" in line]
        assert losses[0] > losses[-1]
    assert AutoModelForSequenceClassification.from_pretrained(newest(judge) / "policy").config.num_labels == 1


def test_the_chain_from_completions_over_preferences_to_ppo(place: Place) -> None:
    tuned = place.start("tuned", {**sft(1), "num_steps": 4})
    assert tuned.wait() == 0, tuned.output
    summary = json.loads((tuned.folder / "summary.json").read_text())
    assert summary["held_out_after"] > summary["held_out_before"]
    policy = newest(tuned) / "policy"

    judge = place.start(
        "judge",
        {
            "model": {"path": str(policy)},
            "data": {"path": "pairs.jsonl", "num_held_out": 8},
            "trainer": {"learning_rate": 1.0e-2},
            "algorithm": {"name": "reward_model", "batch_size": 16, "num_train_epochs": 4},
        },
    )
    assert judge.wait() == 0, judge.output
    last = [line for line in judge.lines("metrics.jsonl") if "val/accuracy" in line][-1]
    assert last["step"] == 8, "four epochs of 32 rows"
    assert last["val/accuracy"] == 1.0
    reward_model = newest(judge) / "policy"
    assert AutoModelForSequenceClassification.from_pretrained(reward_model).config.num_labels == 1

    changes = {
        "model": {"path": str(policy)},
        "data": {"path": "completions.jsonl", "num_held_out": 4, "answer_field": None},
        "reward": {"model_path": str(reward_model)},
        "algorithm": {"name": "ppo", "kl_coefficient": 0.05},
        **{part: SMALL[part] for part in ("rollout", "manager")},
        "num_steps": 2,
    }
    ppo = place.start("ppo", changes)
    assert ppo.wait() == 0, ppo.output
    written = {name for run in (tuned, judge) for line in run.lines("metrics.jsonl") for name in line} - {"step"}
    assert written <= spelled_out()
    assert {name for name in spelled_out() if name.startswith(("train/", "val/"))} <= written
    steps = [line for line in ppo.lines("metrics.jsonl") if "critic/kl" in line]
    assert [line["step"] for line in steps] == [1, 2]
