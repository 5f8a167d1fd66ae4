"""Where the ranks of one model meet: a store that rank 0 serves to those who know the secret."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rlserve.errors import DeadlineExceededError
from rlserve.meeting import MeetingStore, connect

_POLL_INTERVAL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """One rank's place among those that compute a model together."""

    rank: int
    num_ranks: int
    host: str
    """Address of rank 0's machine; its store listens on this address alone."""
    port: int
    secret: str = field(repr=False)
    """The same on all ranks, and unguessable, such as ``secrets.token_hex(32)``: nobody without it can take part."""


def listen(host: str = "127.0.0.1") -> socket.socket:
    """A socket on a free port, for the store of rank 0."""
    return socket.create_server((host, 0))


def meet(
    place: RankPlace, timeout_s: float, listening: socket.socket | None = None, check: Callable[[], None] = lambda: None
) -> MeetingStore:
    """Connect, and wait until all ranks have come.

    Args:
        place: where to meet.
        timeout_s: how long to wait.
        listening: rank 0 serves the store on it; None lets it listen by itself.
        check: called again and again while waiting; may raise to give up.

    Raises:
        DeadlineExceededError: not all ranks came within ``timeout_s``.
        WorkerFailedError: the address is served by somebody without the secret, or rank 0 is lost.
    """
    deadline = time.monotonic() + timeout_s
    store = _connect(place, timeout_s, listening)
    store.set(_key(place.rank), "1")
    missing = list(range(place.num_ranks))
    while True:
        missing = [rank for rank in missing if not store.check([_key(rank)])]
        if not missing:
            return store
        check()
        if time.monotonic() >= deadline:
            names = ", ".join(map(str, missing))
            raise DeadlineExceededError(
                f"tensor parallelism: rank {names} of {place.num_ranks} did not come to {place.host}:{place.port} "
                f"within {timeout_s:g} s"
            )
        time.sleep(_POLL_INTERVAL_S)


def _connect(place: RankPlace, timeout_s: float, listening: socket.socket | None) -> MeetingStore:
    try:
        return connect(
            place.host, place.port, place.secret, timeout_s=timeout_s, serve=place.rank == 0, listening=listening
        )
    except OSError as error:
        who = "cannot serve its store" if place.rank == 0 else "did not serve its store"
        raise DeadlineExceededError(
            f"tensor parallelism: rank 0 {who} at {place.host}:{place.port} within {timeout_s:g} s ({error})"
        ) from error


def _key(rank: int) -> str:
    return f"here/{rank}"
