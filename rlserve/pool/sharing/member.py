"""A run as one of those that share a cluster."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from rlserve.errors import PoolError
from rlserve.pool.config import PoolConfig
from rlserve.pool.sharing.base import Allowance, Claim, HeldSlots

_ASK_S = 0.5


def claim_of(config: PoolConfig, *, name: str, job_id: str, gang_size: int, num_gangs_needed: int) -> Claim:
    """What a run claims before it has anything."""
    share = config.share
    counts: dict[str, int] | None = None
    if config.slots != "auto":
        counts = {}
        for group in config.slots:
            counts[group.type] = counts.get(group.type, 0) + group.count
    return Claim(
        run_id=f"{name}-{uuid.uuid4().hex}",
        name=name,
        job_id=job_id,
        priority=share.priority,
        floor=num_gangs_needed * gang_size if share.floor is None else share.floor,
        floors=share.floors,
        most=share.most,
        counts=counts,
        gang_size=gang_size,
    )


class ClaimClient(Protocol):
    """Who takes claims to the broker: :class:`rlserve.pool.sharing.broker.BrokerClient`."""

    def claim(self, claim: Claim) -> Allowance:
        """What the run may have now.

        Raises:
            PoolError: no broker answers.
        """

    def close(self) -> None:
        """The run has ended."""


class Member:
    """Claims, again and again, for one run. ``allowance`` is what it was answered last."""

    def __init__(self, client: ClaimClient, claim: Claim) -> None:
        self._client = client
        self._claim = claim
        self.allowance = Allowance(slots={}, begins=False)

    def claim(self, holding: HeldSlots, useful: int | None) -> Allowance:
        """What the run may have now, with what it has and could use.

        Raises:
            PoolError: no broker answers.
        """
        claim = replace(self._claim, holding=holding, useful=useful, allowed=self.allowance.slots)
        self.allowance = self._client.claim(claim)
        return self.allowance

    def wait_for_floor(
        self,
        wait_s: float,
        show: Callable[[str], None],
        *,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[], object] = lambda: time.sleep(_ASK_S),
    ) -> Allowance:
        """What the run begins with; ``show`` is told what it waits for, whenever that changes.

        Raises:
            PoolError: its floor was not free within ``wait_s``, or no broker answers.
        """
        deadline_s, shown = now() + wait_s, ""
        while not (allowance := self.claim(HeldSlots(), None)).begins:
            if now() >= deadline_s:
                raise PoolError(
                    f"the run waited pool.share.wait_s={wait_s:g} s for slots of the cluster that it shares: "
                    f"{allowance.obstacle}; ask for less (pool.share.floor), wait for longer, or end another run"
                )
            if allowance.obstacle != shown:
                shown = allowance.obstacle
                show(shown)
            wait()
        return allowance

    def close(self) -> None:
        """The run has ended."""
        self._client.close()
