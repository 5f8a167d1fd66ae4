"""Configuration of what answers the policy within a conversation. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """Conversations with an environment: a tool, a game, a simulated user. Without ``name`` an answer is one turn."""

    name: str | None = None
    """``package.module:Class`` or ``path/to/file.py:Class``; one object of the class is made for each conversation. Or
    ``verifiers:ID``, an environment of the verifiers package, which brings its prompts (``data=verifiers``)."""
    module_folder: str | None = None
    """Folder that a ``package.module`` may lie in; null takes the one where it lies at the start, on Python's path
    or in the working folder."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class, or of the ``load_environment`` of a verifiers environment; plain data."""
    max_turns: int = 8
    """Most turns that the model has in a conversation; one that is not over then counts as cut."""
    max_turn_tokens: int | None = None
    """Longest turn of the model; None lets a turn take what is left of ``rollout.max_tokens``, which is the longest
    conversation, the environment's tokens included."""
    max_concurrent: int = 64
    """Environments that are open at once, all processes together; further conversations wait."""
    num_workers: int = 2
    """Processes that hold the environments, each many at once in one event loop."""
    timeout_s: float = 60.0
    """Deadline of one call: the constructor, ``reset``, ``step`` or ``close``."""
    max_failure_share: float = 0.25
    """Share of the last 32 prompt groups whose environment may fail; more stops the run."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "name": self.name is None
                or all(self.name.rpartition(":")[::2])
                or "must be package.module:Class, path/to/file.py:Class or verifiers:ID",
                "options": self.name is not None or not self.options or "needs environment.name",
                "max_turns": self.max_turns >= 1 or "must be at least 1",
                "max_turn_tokens": self.max_turn_tokens is None or self.max_turn_tokens >= 1 or "must be at least 1",
                "max_concurrent": self.max_concurrent >= 1 or "must be at least 1",
                "num_workers": self.num_workers >= 1 or "must be at least 1",
                "timeout_s": self.timeout_s > 0 or "must be above 0",
                "max_failure_share": 0 <= self.max_failure_share <= 1 or "must be between 0 and 1",
            },
        )
