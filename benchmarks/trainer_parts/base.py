"""The contract between the benchmark and the processes of the peers. Standard library only: a peer may run on a Python
that has none of rlserve's dependencies.

    benchmark                                   process of a peer
    load, with an Assignment            ──►     make the peer
                                        ◄──     versions and settings
    Turn: so many steps, or one run     ──►     do them
                                        ◄──     Outcome
    …                                           until its standard input ends
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TextIO

Kind = Literal["step", "score", "update", "memory"]
"""What a turn is: training steps from prompts to new weights; a training until a score; updates on batches that are
there already; or steps of several ranks, of which the memory is looked at."""
PHASES = ("generation", "reward", "log-probabilities", "update", "weight sync")
"""Of a step of ours, in order. What is left over is the making of the batch."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What ours and a peer do, in turn."""

    name: str
    kind: Kind
    peer: str
    """Name in ``factory.PEERS``."""
    bar: float | None = None
    """None: only shows that everything works."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    task: str = "digits"
    """The built-in task of steps and scores, with its model."""
    shape: str = "75m"
    """The model of updates and memory: a name in ``models.SHAPES``."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """That forward and backward passes compute in; weights and optimizer are float32."""
    num_prompts: int = 64
    """Of a step."""
    num_samples: int = 8
    """Answers to each prompt."""
    answer_tokens: tuple[int, int] | None = None
    """Shortest and longest answer, uniformly distributed, each of a length that is drawn before; None leaves that to
    the model."""
    max_tokens: int = 96
    """Longest answer where the model decides."""
    prompt_tokens: int = 16
    """Of the made-up batches of updates and memory."""
    learning_rate: float = 1e-4
    steps_per_turn: int = 1
    target_score: float = 0.9
    """Share of held-out prompts that are answered right by the likeliest tokens."""
    steps_per_evaluation: int = 5
    max_steps: int = 300
    """A training that has not reached the score by then has failed."""
    num_held_out: int = 512
    num_ranks: int = 1
    default_rounds: int = 5

    @property
    def num_answers(self) -> int:
        """Of a step."""
        return self.num_prompts * self.num_samples

    @property
    def longest_answer(self) -> int:
        """Tokens."""
        return self.max_tokens if self.answer_tokens is None else self.answer_tokens[1]

    @property
    def lower_ratio_wins(self) -> bool:
        """Memory is compared as ours by the peer's, times as the peer's by ours."""
        return self.kind == "memory"

    @property
    def unit(self) -> str:
        """Of an outcome's value."""
        return {"memory": "bytes a parameter", "score": "s"}.get(self.kind, "s a step")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a peer's process is told when it starts."""

    case: Case
    model_folder: str
    data_folder: str
    """Has ``train.jsonl`` and ``held_out.jsonl`` of the task; empty where there is no task."""
    num_threads: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What is asked of a peer at once."""

    index: int
    """0 warms up."""
    num_steps: int

    @property
    def first_step(self) -> int:
        """Number of its first step in the process, from 0: the same steps have the same prompts and lengths."""
        return self.index * self.num_steps


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a turn gave."""

    value: float
    """Seconds of a step, seconds to the score, or bytes a parameter: less is better."""
    work: dict[str, int] = field(default_factory=dict)
    """Counted, not assumed: what was done. Ours and the peer's must agree."""
    phases_s: dict[str, float] = field(default_factory=dict)
    """Seconds a step in each of ``PHASES``, where the peer tells."""
    remarks: dict[str, float] = field(default_factory=dict)
    """Further figures that say what happened, such as the mean reward."""


class Turns:
    """The turns of one process, one JSON object a line. Time is counted from when a turn is read."""

    def __init__(self, questions: TextIO, answers: TextIO) -> None:
        self._questions = questions
        self._answers = answers
        self._begin_s = 0.0

    def next(self) -> Turn | None:
        """Wait for the next turn, and start the clock; None: there is none any more."""
        line = self._questions.readline()
        self._begin_s = time.perf_counter()
        return Turn(**json.loads(line)["turn"]) if line else None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the turn began."""
        return time.perf_counter() - self._begin_s

    def answer(self, outcome: Outcome) -> None:
        """End the turn."""
        self.say(asdict(outcome))

    def say(self, message: dict[str, Any]) -> None:
        """Write a line."""
        print(json.dumps(message), file=self._answers, flush=True)


class Peer(ABC):
    """One that does a case. Made in a process of its own, with its threads set before."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.case = assignment.case

    @abstractmethod
    def serve(self, turns: Turns) -> None:
        """Do one turn after another until there are none. A peer whose own loop calls back between its steps takes
        turns there."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the packages that do the work, by name."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Choices that matter for speed, as the report has them."""


class TurnByTurn(Peer):
    """A peer that is simply called for each turn."""

    def serve(self, turns: Turns) -> None:
        while (turn := turns.next()) is not None:
            turns.answer(self.do(turn, turns))

    @abstractmethod
    def do(self, turn: Turn, turns: Turns) -> Outcome:
        """One turn; ``turns`` has the clock."""


def assignment_from(message: dict[str, Any]) -> Assignment:
    """The one that ``asdict`` and JSON made ``message`` of."""
    case = dict(message["case"])
    if case["answer_tokens"] is not None:
        case["answer_tokens"] = tuple(case["answer_tokens"])
    return Assignment(**{**message, "case": Case(**case)})
