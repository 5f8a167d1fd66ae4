"""What both sides are given: prompts, lengths, the reward, and made-up batches. Runs on the Python of every peer, with
nothing of rlserve but its tasks, which need the standard library alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rlserve.tasks.base import Record, Sample
from trainer_parts.base import Assignment, Case

RewardFunction = Callable[[Sample], float]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a reward is shown."""

    id: str
    prompt: str
    response: str
    answer: str | None
    finished: bool


def training_records(assignment: Assignment) -> list[Record]:
    """All of the task, in the order of the file, cut to whole steps."""
    records = _read(assignment, "train")
    return records[: len(records) // assignment.case.num_prompts * assignment.case.num_prompts]


def held_out_records(assignment: Assignment) -> list[Record]:
    """Those that a score is taken on."""
    return _read(assignment, "held_out")[: assignment.case.num_held_out]


def records_of_step(records: list[Record], case: Case, step: int) -> list[Record]:
    """The prompts of a step, from 0: the next ones in the file, and from the start again at its end."""
    first = step * case.num_prompts % len(records)
    return records[first : first + case.num_prompts]


def answer_lengths(case: Case, step: int) -> list[int]:
    """Tokens of each answer of a step, the answers to one prompt beside each other. The same in every process."""
    assert case.answer_tokens is not None, "the model decides"
    rng = random.Random(f"{case.num_answers} answers of {case.answer_tokens} in step {step}")
    return [rng.randint(*case.answer_tokens) for _ in range(case.num_answers)]


def reward_of(case: Case) -> RewardFunction:
    """The task's own: ``rlserve.tasks.NAME.reward``."""
    function: RewardFunction = import_module(f"rlserve.tasks.{case.task}").reward
    return function


def _read(assignment: Assignment, split: str) -> list[Record]:
    lines = Path(assignment.data_folder, f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Record(**json.loads(line)) for line in lines]
