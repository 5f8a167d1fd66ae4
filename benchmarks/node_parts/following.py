"""Waiting for something that a run's files show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chaos_parts.run_watch import RunWatch

from node_parts.cluster import wait_for

Events = Sequence[Mapping[str, Any]]


def follow(run: RunWatch, is_done: Callable[[Events], bool], what: str) -> None:
    """Wait until ``is_done`` says so of the events that have come since the last look, bit by bit.

    Raises:
        RuntimeError: the run ended before.
        TimeoutError: it does not come.
    """

    def look() -> bool:
        if run.has_ended:
            raise RuntimeError(f"the run ended before {what}:\n{run.output[-3000:]}")
        return is_done(run.look())

    wait_for(look, what)
