"""Versions of the weights where nobody serves them: they are counted, and nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.controller.group_copies import GroupCopies, MemberCopy
from rlserve.controller.weight_source import WeightSource
from rlserve.weights.offer import Receipt


class NoReplicas(WeightSource):
    """Of a run in which all gangs train."""

    busy_s = 0.0

    def __init__(self) -> None:
        self._version = -1

    @property
    def version(self) -> int:
        return self._version

    def metrics(self) -> dict[str, float]:
        return {}

    def copies(self, version: int) -> GroupCopies:
        return GroupCopies()

    async def publish(self, version: int, copies: Sequence[MemberCopy] = ()) -> None:
        self._version = version

    async def settled(self) -> None:
        return

    async def take(self, slot_id: str) -> Receipt:
        raise AssertionError(f"{slot_id} serves in a run that generates nothing")

    async def add(self, slot_id: str, receipt: Receipt) -> None:
        raise AssertionError(f"{slot_id} serves in a run that generates nothing")

    def remove(self, slot_id: str) -> None:
        return

    async def close(self) -> None:
        return
