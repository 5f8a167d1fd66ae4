"""Answers in full: what was asked, what came back, what it was worth. ``answers.jsonl``, one line an answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlserve.tracking.base import Sink
from rlserve.tracking.jsonl import JsonLinesWriter, drop_steps, read_json_lines

Kind = Literal["training", "held_out"]
Keep = int | float | Literal["all"]
"""How many of the prompt groups of a step are kept: a number, a share from 0.0 to 1.0, or all."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the policy, with what is known of it."""

    step: int
    """Training step that it was trained in, or after which it was asked for as a held-out answer (0: before the
    first)."""
    kind: Kind
    group_id: str
    index: int
    """Among the answers to the same prompt."""
    prompt: str
    """As the model read it."""
    reference: Any
    """The data's own answer, as the reward is given it."""
    response: str
    reward: float | None
    """None: it could not be scored."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """Further numbers of the reward, by name."""
    finish_reason: str
    """``stop``: it came to its end; ``length``: it was cut."""
    num_prompt_tokens: int
    num_response_tokens: int
    weight_spans: tuple[tuple[int, int, int], ...]
    """(version, start, end): which version of the weights made the tokens [start, end)."""
    staleness: int
    """Steps that its oldest token is older than the policy that it trains; 0 for held-out answers."""


MakeAnswers = Callable[[], Sequence[Answer]]
"""Makes answers when a sink wants them: texts are decoded in the sink's thread, and only if they are kept."""


def chosen(num_groups: int, keep: Keep) -> tuple[int, ...]:
    """Which of ``num_groups`` are kept: spread evenly, since the slowest come first in a batch."""
    num_kept = num_groups if keep == "all" else math.ceil(keep * num_groups) if isinstance(keep, float) else keep
    num_kept = min(num_kept, num_groups)
    return tuple(index * num_groups // num_kept for index in range(num_kept))


class AnswersFile(Sink):
    """``answers.jsonl``.

    ``resumed_step`` is the first step that a resumed run does again: the lines from that step on are dropped.
    """

    name = "answers.jsonl"

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        if resumed_step is not None:
            drop_steps(path, resumed_step)
        self._writer = JsonLinesWriter(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        return

    def log_answers(self, step: int, kind: Kind, make: MakeAnswers) -> None:
        for answer in make():
            self._writer.write(asdict(answer))

    def close(self, exit_code: int) -> None:
        self._writer.close()


def read_answers(path: Path) -> list[Answer]:
    """What :class:`AnswersFile` wrote; nothing where there is no file.

    Raises:
        DataError: a line is damaged.
    """
    return [
        Answer(**{**record, "weight_spans": tuple(map(tuple, record["weight_spans"]))})
        for record in read_json_lines(path)
    ]


def by_reward(answers: Sequence[Answer], *, best_first: bool = False) -> list[Answer]:
    """The worst first, or the best; an answer that was not scored counts as the worst."""
    known = [-math.inf if answer.reward is None else answer.reward for answer in answers]
    order = sorted(range(len(answers)), key=lambda index: known[index], reverse=best_first)
    return [answers[index] for index in order]


def worst_and_best(answers: Sequence[Answer], num_each: int) -> list[Answer]:
    """The ``num_each`` worst and then the best, the worst first, none twice; of different prompts as far as there are
    enough."""
    if len(answers) <= 2 * num_each:
        return by_reward(answers)
    worst = _of_different_prompts(by_reward(answers))[:num_each]
    taken = {id(answer) for answer in worst}
    rest = [answer for answer in answers if id(answer) not in taken]
    best = _of_different_prompts(by_reward(rest, best_first=True))[:num_each]
    return by_reward([*worst, *best])


def _of_different_prompts(answers: Sequence[Answer]) -> list[Answer]:
    """The first answer to each prompt, then the second to each, and so on."""
    num_seen: Counter[str] = Counter()
    places = []
    for answer in answers:
        places.append(num_seen[answer.group_id])
        num_seen[answer.group_id] += 1
    return [answers[index] for index in sorted(range(len(answers)), key=places.__getitem__)]
