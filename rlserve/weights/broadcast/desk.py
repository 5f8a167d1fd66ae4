"""Asking for parcels, and being told which group to join: messages over the sender's store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta

from rlserve.distributed.store import RendezvousStore
from rlserve.weights.broadcast.membership import Ask

_NUM_ASKS = "num_asks"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a receiver is told: the group that its parcel is broadcast to."""

    generation: int
    """Counts the sender's groups."""
    rank: int
    members: tuple[str, ...]
    """The receivers, from rank 1 on; nobody where the parcel is gone."""
    port: int
    """Where the group meets, on the sender's address."""

    @property
    def is_gone(self) -> bool:
        """The sender does not have the parcel any more."""
        return not self.members


GONE = Answer(generation=0, rank=0, members=(), port=0)


class AskingDesk:
    """The sender's end."""

    def __init__(self, store: RendezvousStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._num_seen = 0
        self._announced: set[int] = set()
        """Numbers that were taken, and not said what for yet."""

    def new_asks(self) -> list[Ask]:
        """What was asked since the last call."""
        num_asks = self._store.add(_NUM_ASKS, 0)
        self._announced.update(range(self._num_seen + 1, num_asks + 1))
        self._num_seen = num_asks
        found = [number for number in sorted(self._announced) if self._store.check([f"ask/{number}"])]
        self._announced.difference_update(found)
        return [self._read(number) for number in found]

    def now_s(self) -> float:
        """The clock that asks are timed by."""
        return self._clock()

    def answer(self, ask: Ask, answer: Answer) -> None:
        """Tell whoever asked."""
        self._store.set(f"answer/{ask.number}", json.dumps(asdict(answer)))

    def _read(self, number: int) -> Ask:
        key = f"ask/{number}"
        content = json.loads(self._store.get(key))
        self._store.delete_key(key)
        return Ask(number=number, time_s=self._clock(), **content)


def ask_for(store: RendezvousStore, parcel: str, *, member: str, generation: int, timeout_s: float) -> Answer:
    """A receiver's end: ask, and wait for the answer. ``generation`` is that of the group that it is in.

    Raises:
        DeadlineExceededError: there is none.
        StoreLostError: the sender is gone.
    """
    number = store.add(_NUM_ASKS, 1)
    store.set(f"ask/{number}", json.dumps({"member": member, "parcel": parcel, "generation": generation}))
    key = f"answer/{number}"
    store.wait([key], timedelta(seconds=timeout_s))
    content = json.loads(store.get(key))
    store.delete_key(key)
    return Answer(**content | {"members": tuple(content["members"])})
