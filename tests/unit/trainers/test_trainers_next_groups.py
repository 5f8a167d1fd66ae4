"""Groups that are formed ahead: which one is taken, and which are closed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from rlserve.distributed.addresses import LOOPBACK, free_port
from rlserve.errors import WorkerFailedError
from rlserve.trainers.base import Membership
from rlserve.trainers.elastic import next_groups
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.next_groups import NextGroups


class FakeGroup(LocalGroup):
    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> list[FakeGroup]:
    """All groups that were formed, in order."""
    groups: list[FakeGroup] = []

    def join(membership: Membership, *, timeout_s: float, device: torch.device, check: Callable[[], None]) -> Group:
        assert (timeout_s, device.type) == (7.0, "cpu")
        check()
        groups.append(FakeGroup(membership.generation))
        return groups[-1]

    monkeypatch.setattr(next_groups, "join_group", join)
    return groups


@pytest.fixture
def groups() -> NextGroups:
    return NextGroups(timeout_s=7.0, device=torch.device("cpu"))


def test_a_group_that_one_rank_cannot_form_twice_is_closed(
    groups: NextGroups, formed: list[FakeGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_group: FakeGroup) -> None:
        raise WorkerFailedError("a rank was lost")

    monkeypatch.setattr(FakeGroup, "connect_again", fail)
    with pytest.raises(WorkerFailedError, match="a rank was lost"):
        groups.meet(place(3))
    assert closed(formed) == [3]


def place(generation: int) -> Membership:
    return Membership(rank=0, num_ranks=2, host="127.0.0.1", port=1, generation=generation, secret="s")


def closed(formed: list[FakeGroup]) -> list[int]:
    return [group.generation for group in formed if group.is_closed]


def test_the_group_that_has_met_is_taken_once(groups: NextGroups, formed: list[FakeGroup]) -> None:
    groups.meet(place(3))
    assert groups.take(place(3)) is formed[0]
    assert groups.take(place(4)) is formed[1]
    assert closed(formed) == []


def test_one_that_comes_to_nothing_is_closed(groups: NextGroups, formed: list[FakeGroup]) -> None:
    groups.meet(place(3))
    groups.meet(place(4))
    assert closed(formed) == [3]
    assert groups.take(place(5)) is formed[2]
    assert closed(formed) == [3, 4]
    groups.meet(place(6))
    groups.drop()
    assert closed(formed) == [3, 4, 6]
    groups.drop()


def test_one_that_meets_too_late_is_closed(groups: NextGroups, formed: list[FakeGroup]) -> None:
    groups.take(place(4))
    groups.meet(place(5))
    groups.meet(place(3))  # it waited for its members since before the other two
    assert closed(formed) == [3]
    assert groups.take(place(5)) is formed[1]


def test_groups_up_to_one_that_is_broken_off_are_not_formed(groups: NextGroups, formed: list[FakeGroup]) -> None:
    groups.break_off(4)
    groups.break_off(3)
    for way in (groups.meet, groups.take):
        with pytest.raises(WorkerFailedError, match="trainer group 4: a member was lost while it formed"):
            way(place(4))
    assert groups.take(place(5)) is formed[0]


def test_a_rank_that_waits_for_another_is_freed_when_that_is_lost() -> None:
    """It would wait for an hour for rank 0, which nobody is."""
    groups = NextGroups(timeout_s=3600.0, device=torch.device("cpu"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(groups.take, replace(place(4), rank=1, port=free_port(LOOPBACK)))
        groups.break_off(4)
        with pytest.raises(WorkerFailedError, match="trainer group 4: a member was lost while it formed"):
            waiting.result()


def test_rank_0_is_freed_too_when_nobody_comes() -> None:
    groups = NextGroups(timeout_s=3600.0, device=torch.device("cpu"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(groups.take, replace(place(4), port=free_port(LOOPBACK)))
        groups.break_off(4)
        with pytest.raises(WorkerFailedError, match="trainer group 4: a member was lost while it formed"):
            waiting.result()


def test_one_that_met_while_another_was_formed_is_kept(groups: NextGroups, formed: list[FakeGroup]) -> None:
    groups.meet(place(6))
    assert groups.take(place(5)) is formed[1]
    assert groups.take(place(6)) is formed[0]
