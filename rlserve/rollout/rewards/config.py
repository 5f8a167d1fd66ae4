"""Configuration of what scores an answer, alone or as one of several. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields

CODE, MATH_VERIFY = "builtin:code", "builtin:math_verify"
BUILTIN_FUNCTIONS = (CODE, MATH_VERIFY)
"""What ``function`` may name beside the user's own."""


@dataclass(frozen=True, kw_only=True)
class RewardSourceConfig:
    """What scores an answer."""

    function: str | None = None
    """``package.module:function`` or ``path/to/file.py:function``; called with one answer, returns its reward. Or
    ``builtin:code``, which runs the program in an answer against tests, or ``builtin:math_verify``, which compares it
    with the reference as mathematics."""
    module_folder: str | None = None
    """Folder that a ``package.module`` may lie in; null takes the one where it lies at the start, on Python's path
    or in the working folder."""
    url: str | None = None
    """Of a server that is posted answers and returns their rewards, ``http://…`` or ``https://…``."""
    model_path: str | None = None
    """Folder or hub name of a Hugging Face sequence-classification model with one label."""
    apply_chat_template: bool | None = None
    """Show a reward model prompt and answer as a conversation, rendered with its own chat template; None does so where
    it has one and the policy's is used (``data.apply_chat_template``)."""

    @property
    def source(self) -> str:
        """What scores, for messages: ``function=my.py:score``."""
        return ", ".join(f"{key}={value}" for key, value in self._sources())

    def _sources(self) -> Iterator[tuple[str, str]]:
        keys = ("function", "url", "model_path")
        return ((key, value) for key in keys if (value := getattr(self, key)) is not None)

    def _problem_of_several(self, prefix: str) -> str | None:
        first, *others = (key for key, _ in self._sources())
        return (
            f"{prefix}{first} cannot stand beside {prefix}{others[0]}: set one of the two to null" if others else None
        )


@dataclass(frozen=True, kw_only=True)
class RewardPartConfig(RewardSourceConfig):
    """One of several rewards, under a name of your own: exactly one of ``function``, ``url`` and ``model_path``."""

    weight: float = 1.0
    """Of this reward in the sum that is trained on; 0 only writes it to the metrics."""

    def __post_init__(self) -> None:
        num_sources = len(list(self._sources()))
        check_fields(
            self,
            {
                "function": (num_sources == 0 and "name a reward: function, url or model_path")
                or (num_sources > 1 and self._problem_of_several(""))
                or True,
                "weight": math.isfinite(self.weight) or "must be finite",
            },
        )


@dataclass(frozen=True, kw_only=True)
class HttpRewardConfig:
    """How a reward server (``url``) is asked."""

    timeout_s: float = 15.0
    """Deadline of one request."""
    num_retries: int = 4
    """Times that a request is made again after a failure of the connection, a deadline that passed, or a status of 429
    or from 500 on."""
    retry_delay_s: float = 0.5
    """Wait before the first of them, doubled before each further one. All together end before ``reward.timeout_s``."""
    max_samples_per_request: int = 32
    """Answers in one request; those to one prompt are scored together."""
    max_concurrent_requests: int = 4
    """Requests under way at once from each of the processes that score (``reward.num_workers``)."""
    token_variable: str | None = None
    """Environment variable that holds a token, sent as ``Authorization: Bearer TOKEN``."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "timeout_s": self.timeout_s > 0 or "must be above 0",
                "num_retries": self.num_retries >= 0 or "must be at least 0",
                "retry_delay_s": self.retry_delay_s >= 0 or "must be at least 0",
                "max_samples_per_request": self.max_samples_per_request >= 1 or "must be at least 1",
                "max_concurrent_requests": self.max_concurrent_requests >= 1 or "must be at least 1",
            },
        )


@dataclass(frozen=True, kw_only=True)
class CodeRewardConfig:
    """How ``reward.function=builtin:code`` runs the program in an answer against the tests of its row."""

    tests_field: str = "tests"
    """Column of the tests: asserts, or inputs with the outputs that must follow (see docs/rewards.md). Dots lead into
    nested columns."""
    partial_credit: bool = False
    """Give the share of the tests that pass; False gives 1 where all do, else 0, and tries no further input after a
    failure."""
    cpu_time_s: int = 5
    """Processor time of each process of a program, in whole seconds."""
    wall_time_s: float = 10.0
    """Time of a program from its start: for one input, or for all asserts together."""
    memory_bytes: int = 512 << 20
    """Address space of each process of a program."""
    file_bytes: int = 16 << 20
    """Size of a file that it writes, and of all that its working folder holds."""
    output_bytes: int = 1 << 20
    """What it may print."""
    num_processes: int = 8
    """Processes and threads that it may have at once."""
    num_parallel: int = 2
    """Answers whose programs run at once, in each of the processes that score."""
    isolation: Literal["required", "if_possible"] = "required"
    """Run programs in namespaces of Linux, without network, other processes and files, or else not at all.
    ``if_possible`` runs them with their limits alone where the kernel has no namespaces for this user."""

    def __post_init__(self) -> None:
        numbers = ("memory_bytes", "file_bytes", "output_bytes", "cpu_time_s", "num_processes", "num_parallel")
        check_fields(
            self,
            {name: getattr(self, name) >= 1 or "must be at least 1" for name in numbers}
            | {"wall_time_s": self.wall_time_s > 0 or "must be above 0"},
        )


@dataclass(frozen=True, kw_only=True)
class MathVerifyRewardConfig:
    """How ``reward.function=builtin:math_verify`` compares; it needs the extra ``rlserve[math]``."""

    timeout_s: float = 3.0
    """Deadline of comparing one answer; past it the answer is worth 0."""

    def __post_init__(self) -> None:
        check_fields(self, {"timeout_s": self.timeout_s > 0 or "must be above 0"})
