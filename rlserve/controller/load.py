"""What a decision about slots rests on besides the slots themselves, read at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.controller.context import Books
from rlserve.controller.training_loop import TrainingLoop
from rlserve.rollout.requests.base import RequestKind


@dataclass(frozen=True, kw_only=True)
class Load:
    """How far each side is ahead of the other."""

    num_waiting: int
    """Prompt groups that no replica has."""
    client_queue: float
    """Requests of clients that no replica has, each as the share of a prompt group that clients have of replicas."""
    num_buffered: int
    """Finished groups that wait for the trainer."""
    num_in_flight: int
    """Groups admitted and not yet finished."""
    trainer_waiting: bool
    """Whether the trainer waits for a batch."""


class LoadReader:
    """Reads them from who owns them.

    Args:
        client_share: share of the samples that replicas hold which may be clients'.
    """

    def __init__(self, books: Books, training: TrainingLoop, *, client_share: float) -> None:
        self._books = books
        self._client_share = client_share
        self._training = training

    def read(self) -> Load:
        """Now."""
        ledger, buffer = self._books.ledger, self._books.buffer
        return Load(
            num_waiting=self._books.router.num_waiting(RequestKind.TRAINING),
            client_queue=self._client_share * self._books.router.num_waiting(RequestKind.CLIENT),
            num_buffered=len(buffer),
            num_in_flight=ledger.num_live - len(buffer),
            trainer_waiting=self._training.waiting,
        )
