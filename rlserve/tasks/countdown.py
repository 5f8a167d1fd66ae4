"""Count down to 1: answers of 1 to 197 characters, all right or worth nothing.

A prompt is ``837#21:``: a number that only tells prompts apart, and the one to begin with. The answer is::

    21,20,19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1

The demonstrations are careless on purpose, as those of :mod:`rlserve.tasks.addition` are, and here at few places:
where a number ends in 0 the next one borrows from the tens, and mostly the demonstrator forgets to (``20,29``) and
counts the same ten numbers again, or ends there. So a model that imitates him can count, but gets hardly any answer
right that has more than one borrow in it; wrong answers are too long as well as too short; and the one token that was
at fault may lie two hundred before the reward. It is the task on which algorithms can differ in what they make of
lengths, of rare rewards, and of tokens that are seldom drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal

from rlserve.tasks.base import Demonstration, Record, Sample, Split, Task, WarmStartRecipe, split_of

LARGEST_START = 69
"""Each from 1 on is equally likely."""
LARGEST_EASY_START = 29
NUM_TAGS = 1000
FORGET_PROBABILITY = 0.7
"""Of a due borrow, in the demonstrations, unless he ends there."""
END_PROBABILITY = 0.2
"""Of ending where a borrow is due."""
MAX_NUM_FORGOTTEN = 3
"""In a demonstration: at a further borrow he ends."""
SEPARATOR = ","

Deed = Literal["borrow", "forget", "end"]


class CountdownTask(Task):
    """``builtin:countdown``."""

    name = "countdown"
    alphabet = "0123456789#:" + SEPARATOR
    recipe = WarmStartRecipe(
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        num_steps=300,
        batch_size=32,
        matrix_learning_rate=0.036,
        other_learning_rate=0.006,
        easy_share=0.2,
        num_warmup_steps=30,
        decay_share=0.5,
        seed=0,
    )

    def records(self, *, seed: int, split: Split, count: int) -> list[Record]:
        rng = random.Random(f"{seed} {split}")
        records: dict[str, Record] = {}
        while len(records) < count:
            start = rng.randint(1, LARGEST_START)
            prompt = draw_prompt(start, rng)
            if split_of(prompt) == split:
                records[prompt] = Record(prompt=prompt, answer=count_down(start, at_borrow=lambda: "borrow"))
        return list(records.values())

    def demonstrations(self, *, seed: int, easy: bool) -> Iterator[Demonstration]:
        rng = random.Random(f"{seed} demonstrations")
        while True:
            start = rng.randint(1, LARGEST_EASY_START if easy else LARGEST_START)
            prompt = draw_prompt(start, rng)
            if split_of(prompt) == "train":
                response = count_down(start, at_borrow=lambda: draw_deed(rng))
                yield Demonstration(prompt=prompt, response=response)


def draw_prompt(start: int, rng: random.Random) -> str:
    """``837#21:``."""
    return f"{rng.randrange(NUM_TAGS)}#{start}:"


def draw_deed(rng: random.Random) -> Deed:
    """What the demonstrator does where a borrow is due."""
    if rng.random() < END_PROBABILITY:
        return "end"
    return "forget" if rng.random() < FORGET_PROBABILITY else "borrow"


def count_down(start: int, *, at_borrow: Callable[[], Deed]) -> str:
    """The answer. ``at_borrow`` is asked at each due borrow."""
    numbers = [start]
    num_forgotten = 0
    while numbers[-1] != 1:
        deed: Deed = "borrow" if numbers[-1] % 10 else at_borrow()
        num_forgotten += deed == "forget"
        if deed == "end" or num_forgotten > MAX_NUM_FORGOTTEN:
            break
        numbers.append(numbers[-1] - 1 + (10 if deed == "forget" else 0))
    return SEPARATOR.join(map(str, numbers))


def reward(sample: Sample) -> float:
    """1 where the answer ended by itself and has exactly the numbers asked for, else 0."""
    return 1.0 if sample.finished and sample.response == sample.answer else 0.0
