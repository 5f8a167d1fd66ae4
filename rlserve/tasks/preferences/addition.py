"""Additions worked out rightly, beside the same with a carry forgotten."""

from __future__ import annotations

import random

from rlserve.tasks.addition import FORGET_PROBABILITY, draw_operands, format_prompt, work_out
from rlserve.tasks.base import Split, split_of


def addition_pairs(*, seed: int, split: Split, count: int) -> list[dict[str, str]]:
    """Rows with ``prompt``, ``chosen`` and ``rejected``; no prompt of one split is in the other."""
    rng = random.Random(f"{seed} {split} preferences")
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        first, second = draw_operands(rng)
        prompt = format_prompt(first, second)
        if split_of(prompt) != split:
            continue
        right = work_out(first, second, remember_carry=lambda: True)
        careless = work_out(first, second, remember_carry=lambda: rng.random() >= FORGET_PROBABILITY)
        if careless != right:
            rows.append({"prompt": prompt, "chosen": right, "rejected": careless})
    return rows
