"""Favour a digit: a task with nothing to it, for runs on paced slots, whose answers have lengths of their own.

A prompt is ``4071359:``, and the reward is the share of the answer's characters that are the prompt's first digit. It
does not depend on where the answer ends, every token counts alike, and the policy gets better with every step: so what
a paced run computes is real, and next to nothing. The warm start only teaches the model to write digits, evenly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from rlserve.tasks.base import Demonstration, Record, Sample, Split, Task, WarmStartRecipe, split_of

NUM_DIGITS = 7
NUM_ANSWER_DIGITS = 12


class DigitsTask(Task):
    """``builtin:digits``."""

    name = "digits"
    alphabet = "0123456789:"
    recipe = WarmStartRecipe(
        hidden_size=32,
        intermediate_size=64,
        num_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=2048,
        num_steps=20,
        batch_size=16,
        matrix_learning_rate=0.02,
        other_learning_rate=0.006,
        easy_share=0.0,
        num_warmup_steps=5,
        decay_share=0.5,
        seed=0,
    )

    def records(self, *, seed: int, split: Split, count: int) -> list[Record]:
        rng = random.Random(f"{seed} {split}")
        records: dict[str, Record] = {}
        while len(records) < count:
            prompt = _draw_prompt(rng)
            if split_of(prompt) == split:
                records[prompt] = Record(prompt=prompt, answer=prompt[0])
        return list(records.values())

    def demonstrations(self, *, seed: int, easy: bool) -> Iterator[Demonstration]:
        rng = random.Random(f"{seed} demonstrations")
        while True:
            prompt = _draw_prompt(rng)
            if split_of(prompt) == "train":
                response = "".join(rng.choice("0123456789") for _ in range(NUM_ANSWER_DIGITS))
                yield Demonstration(prompt=prompt, response=response)


def _draw_prompt(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(NUM_DIGITS)) + ":"


def reward(sample: Sample) -> float:
    """The share of the answer's characters that are the prompt's first digit."""
    return sample.response.count(sample.answer or "-") / max(1, len(sample.response))
