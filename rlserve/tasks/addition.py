"""Long addition, worked column by column from the right, on a character-level model.

A prompt is ``407+86=``. Its worked answer has one column of nine characters per digit of the longer number,
``digit+digit+carry=sum;`` with the sum in two digits, and then the final answer::

    7+6+0=13;0+8+1=09;4+0+0=04;493

Two to five columns make answers of 20 to 51 characters. The reward looks only at the final answer, what stands
before the last ``;`` is free.

The demonstrations are *careless on purpose*: wherever a carry is due, the demonstrator writes ``0`` for it more
often than not, each time independently, and goes on correctly from there. A model that imitates him has the skill
(copying digits, adding a column, gathering the answer) but a bad habit, so it answers most problems wrongly. That
is the starting policy that a demonstration of reinforcement learning needs: right and wrong answers are both
likely, the reward tells them apart, and no demonstration shows which habit to keep. It stands in for the
pretrained model of a real run, and says nothing about how well small models learn to add.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from rlserve.tasks.base import Demonstration, Record, Sample, Split, Task, WarmStartRecipe, split_of

MIN_NUM_COLUMNS, MAX_NUM_COLUMNS = 2, 5
MAX_NUM_EASY_COLUMNS = 3
FORGET_PROBABILITY = 0.6
"""Of a due carry, in the demonstrations."""
COLUMN_END = ";"


class AdditionTask(Task):
    """``builtin:addition``."""

    name = "addition"
    alphabet = "0123456789+=" + COLUMN_END
    recipe = WarmStartRecipe(
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        num_steps=320,
        batch_size=32,
        matrix_learning_rate=0.036,
        other_learning_rate=0.006,
        easy_share=0.2,
        num_warmup_steps=30,
        decay_share=0.6,
        seed=0,
    )

    def records(self, *, seed: int, split: Split, count: int) -> list[Record]:
        rng = random.Random(f"{seed} {split}")
        records: dict[str, Record] = {}
        while len(records) < count:
            first, second = draw_operands(rng)
            prompt = format_prompt(first, second)
            if split_of(prompt) == split:
                records[prompt] = Record(prompt=prompt, answer=str(first + second))
        return list(records.values())

    def demonstrations(self, *, seed: int, easy: bool) -> Iterator[Demonstration]:
        rng = random.Random(f"{seed} demonstrations")
        while True:
            first, second = draw_operands(rng)
            prompt = format_prompt(first, second)
            if split_of(prompt) == "train" and not (easy and num_columns_of(first, second) > MAX_NUM_EASY_COLUMNS):
                response = work_out(first, second, remember_carry=lambda: rng.random() >= FORGET_PROBABILITY)
                yield Demonstration(prompt=prompt, response=response)


def draw_operands(rng: random.Random) -> tuple[int, int]:
    """Two numbers without leading zeros in either order, the longer one evenly of each length, the other at most
    two digits shorter."""
    num_columns = rng.randint(MIN_NUM_COLUMNS, MAX_NUM_COLUMNS)
    longer = rng.randrange(10 ** (num_columns - 1), 10**num_columns)
    num_digits = rng.randint(max(1, num_columns - 2), num_columns)
    shorter = rng.randrange(10 ** (num_digits - 1), 10**num_digits)
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


def num_columns_of(first: int, second: int) -> int:
    """Digits of the longer number."""
    return max(len(str(first)), len(str(second)))


def format_prompt(first: int, second: int) -> str:
    """``407+86=``."""
    return f"{first}+{second}="


def work_out(first: int, second: int, *, remember_carry: Callable[[], bool]) -> str:
    """The worked answer. ``remember_carry`` is asked at each due carry; a forgotten one is written and counted as 0."""
    num_columns = num_columns_of(first, second)
    digits_from_right = zip(
        reversed(str(first).zfill(num_columns)), reversed(str(second).zfill(num_columns)), strict=True
    )
    columns: list[str] = []
    answer = ""
    column_sum = 0
    for first_digit, second_digit in digits_from_right:
        carry = 1 if column_sum >= 10 and remember_carry() else 0
        column_sum = int(first_digit) + int(second_digit) + carry
        columns.append(f"{first_digit}+{second_digit}+{carry}={column_sum:02d}{COLUMN_END}")
        answer = str(column_sum % 10) + answer
    if column_sum >= 10:
        answer = "1" + answer
    return "".join(columns) + answer


def reward(sample: Sample) -> float:
    """1 where the answer ended by itself and what follows its last ``;`` is exactly the right sum, else 0."""
    final_answer = sample.response.rsplit(COLUMN_END, maxsplit=1)[-1]
    return 1.0 if sample.finished and final_answer == sample.answer else 0.0
