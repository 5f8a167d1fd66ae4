"""Where the ranks of a group meet: a store that rank 0 serves to those who know the group's secret.

The store also tells who is missing: every member writes its name when it joins and, should a collective
operation fail, once more; whoever did not write in time is named in the error.
"""

from __future__ import annotations

import logging
import time

from rlserve.errors import DeadlineExceededError, WorkerFailedError
from rlserve.meeting import MeetingStore, connect
from rlserve.trainers.base import Membership

logger = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.02
_FAILURE_REPORT_S = 2.0
"""How long the survivors of a failed operation wait for each other's report before they name the silent ones."""


class Rendezvous:
    """One rank's end of the store of one group."""

    def __init__(self, membership: Membership, timeout_s: float) -> None:
        """Connect, and wait until every member has joined.

        Raises:
            DeadlineExceededError: not all members came within ``timeout_s``; the message names who is missing.
            WorkerFailedError: rank 0's address is served by somebody without the secret.
        """
        self.membership = membership
        deadline = time.monotonic() + timeout_s
        self.store = self._connect(timeout_s)
        missing = self._report_and_wait("joined", deadline)
        if missing:
            raise DeadlineExceededError(
                f"trainer group {membership.generation}: {_name(missing)} of {membership.world_size} did not join "
                f"at {membership.host}:{membership.port} within {timeout_s:g} s"
            )

    def silent_ranks(self) -> list[int]:
        """After a failed operation: the ranks that do not report the failure as well, so are dead or stuck."""
        return self._report_and_wait("failed", time.monotonic() + _FAILURE_REPORT_S)

    def _connect(self, timeout_s: float) -> MeetingStore:
        """Serve the store on rank 0, on the membership's address alone; connect to it elsewhere."""
        place = self.membership
        try:
            return connect(place.host, place.port, place.secret, timeout_s=timeout_s, serve=place.rank == 0)
        except OSError as error:
            who = "cannot serve its store" if place.rank == 0 else "did not serve its store"
            raise DeadlineExceededError(
                f"trainer group {place.generation}: rank 0 {who} at {place.host}:{place.port} "
                f"within {timeout_s:g} s ({error})"
            ) from error

    def _report_and_wait(self, event: str, deadline: float) -> list[int]:
        """Write that this rank saw ``event``; return the ranks that did not write so before the deadline."""
        place = self.membership
        missing = list(range(place.world_size))
        try:
            self.store.set(self._key(event, place.rank), "1")
            while True:
                missing = [rank for rank in missing if not self.store.check([self._key(event, rank)])]
                if not missing or time.monotonic() >= deadline:
                    return missing
                time.sleep(_POLL_INTERVAL_S)
        except WorkerFailedError as error:
            # The store is gone with rank 0: either rank 0 died, or it has finished its own report and left.
            logger.warning("trainer group %d: the store of rank 0 is gone (%s)", place.generation, error)
            return [0] if 0 in missing else missing

    def _key(self, event: str, rank: int) -> str:
        return f"{self.membership.generation}/{event}/{rank}"


def _name(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
