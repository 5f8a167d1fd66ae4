"""Waiting for a cluster: what is not there yet is asked for again until the deadline."""

from __future__ import annotations

import pytest

from rlserve.errors import PoolError
from rlserve.launch.connect.cluster import _retried


class Slots:
    """Come up one each time that they are counted."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.there = 0

    def count(self) -> int:
        self.there += 1
        if self.there < self.wanted:
            raise PoolError(f"only {self.there}")
        return self.there


def test_slots_that_come_up_are_waited_for_until_the_deadline() -> None:
    clock = [0.0]

    def wait() -> None:
        clock[0] += 1.0

    assert _retried(Slots(4).count, 10.0, now=lambda: clock[0], wait=wait) == 4
    assert clock == [3.0]
    with pytest.raises(PoolError, match="only 8"):
        _retried(Slots(100).count, 10.0, now=lambda: clock[0], wait=wait)
    assert clock == [10.0]
