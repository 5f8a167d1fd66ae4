"""Where the ranks of a group meet: a store that rank 0 serves to those who know the group's secret.

The store also tells who is missing: every member writes its name when it joins and, should a collective
operation fail, once more; whoever did not write in time is named in the error.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from rlserve.distributed.base import RankPlace
from rlserve.distributed.store import RendezvousStore, StoreLostError, connect
from rlserve.errors import DeadlineExceededError

logger = logging.getLogger(__name__)

_FIRST_POLL_S, _POLL_S = 0.001, 0.02
"""Between two looks at who is there: at first, and after the ranks that are started together should have come."""
_FAILURE_REPORT_S = 2.0
"""How long the survivors of a failed operation wait for each other's report before they name the silent ones."""


class Rendezvous:
    """One rank's end of the store of one group."""

    def __init__(
        self,
        place: RankPlace,
        *,
        group: str,
        timeout_s: float,
        listening: socket.socket | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect, and wait until every member has joined.

        Args:
            place: this rank's place.
            group: what to call the group in messages.
            timeout_s: how long to wait for the others.
            listening: rank 0 serves the store on it; None lets it listen by itself.
            check: called again and again while waiting, and while the store waits later; may raise to give up.

        Raises:
            DeadlineExceededError: not all members came within ``timeout_s``; the message names who is missing.
            WorkerFailedError: rank 0's address is served by somebody without the secret.
        """
        self.place = place
        self.group = group
        deadline = time.monotonic() + timeout_s
        self.store = self._connect(timeout_s, listening, check)
        missing = self._report_and_wait("joined", deadline, check)
        if missing:
            raise DeadlineExceededError(
                f"{group}: {_name(missing)} of {place.num_ranks} did not join "
                f"at {place.host}:{place.port} within {timeout_s:g} s"
            )

    def silent_ranks(self) -> list[int]:
        """After a failed operation: the ranks that do not report the failure as well, so are dead or stuck."""
        return self._report_and_wait("failed", time.monotonic() + _FAILURE_REPORT_S)

    def _connect(self, timeout_s: float, listening: socket.socket | None, check: Callable[[], None]) -> RendezvousStore:
        """Serve the store on rank 0, on the place's address alone; connect to it elsewhere."""
        place, serve = self.place, self.place.rank == 0
        try:
            return connect(
                place.host,
                place.port,
                place.secret,
                timeout_s=timeout_s,
                serve=serve,
                listening=listening,
                while_waiting=check,
            )
        except OSError as error:
            who = "cannot serve its store" if serve else "did not serve its store"
            raise DeadlineExceededError(
                f"{self.group}: rank 0 {who} at {place.host}:{place.port} within {timeout_s:g} s ({error})"
            ) from error

    def _report_and_wait(self, event: str, deadline: float, check: Callable[[], None] = lambda: None) -> list[int]:
        """Write that this rank saw ``event``; return the ranks that did not write so before the deadline."""
        missing, poll_s = list(range(self.place.num_ranks)), _FIRST_POLL_S
        try:
            self.store.set(f"{event}/{self.place.rank}", "1")
            while missing := [rank for rank in missing if not self.store.check([f"{event}/{rank}"])]:
                check()
                if time.monotonic() >= deadline:
                    break
                time.sleep(poll_s)
                poll_s = min(2 * poll_s, _POLL_S)
        except StoreLostError as error:
            # The store is gone with rank 0: either rank 0 died, or it has finished its own report and left.
            logger.warning("%s: the store of rank 0 is gone (%s)", self.group, error)
            return [0] if 0 in missing else missing
        return missing


def _name(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
