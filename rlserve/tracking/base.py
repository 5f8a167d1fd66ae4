"""The contract of a sink: a place that metrics go to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rlserve.engine.stats.metrics import Value

if TYPE_CHECKING:
    from rlserve.tracking.answers import Kind, MakeAnswers

EngineMetrics = Mapping[str, Value]
"""Of one engine, by vLLM's names."""


class Sink(ABC):
    """Takes the metrics of a run. It may raise: the tracker then goes on without it."""

    name: str
    """As a warning calls it."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a training step (0 is before the first). One step may come in several calls."""

    def log_answers(self, step: int, kind: Kind, make: MakeAnswers) -> None:
        """Take some answers of a step in full. Most sinks have no place for texts, and never call ``make``."""
        return

    def alert(self, title: str, text: str) -> None:
        """Tell people of something now. Most sinks reach nobody."""
        return

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """Write out what is held back. ``exit_code`` is the run's: 0 for finished, 130 for Ctrl-C."""


class LiveSink(Sink):
    """Also shows what is now, whenever somebody asks."""

    @abstractmethod
    def watch_engines(self, read: Callable[[], Mapping[str, EngineMetrics]]) -> None:
        """Where the numbers of each slot's engine are read; called in another thread."""
