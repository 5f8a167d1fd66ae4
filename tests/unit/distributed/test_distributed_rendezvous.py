"""The store where the ranks of a group meet."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from rlserve.distributed.addresses import LOOPBACK, free_port
from rlserve.distributed.base import RankPlace
from rlserve.distributed.rendezvous import Rendezvous
from rlserve.errors import DeadlineExceededError, WorkerFailedError


def place(port: int, *, rank: int = 0, num_ranks: int = 1, secret: str = "s") -> RankPlace:
    return RankPlace(rank=rank, num_ranks=num_ranks, host=LOOPBACK, port=port, secret=secret)


def meet(where: RankPlace, *, timeout_s: float = 10.0, check: Callable[[], None] = lambda: None) -> Rendezvous:
    return Rendezvous(where, group="trainer group 1", timeout_s=timeout_s, check=check)


def test_the_store_listens_on_the_address_of_the_group_alone() -> None:
    port = free_port()
    rendezvous = meet(place(port))
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    assert rendezvous.silent_ranks() == []


def test_a_port_that_is_taken_is_named() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(DeadlineExceededError, match=r"rank 0 cannot serve its store at 127\.0\.0\.1:\d+ .*in use"),
    ):
        meet(place(taken.getsockname()[1]))


def test_the_port_is_free_again_once_the_rendezvous_is_gone() -> None:
    port = free_port()
    for _ in range(2):
        rendezvous = meet(place(port))
        del rendezvous


def test_missing_ranks_are_all_named() -> None:
    with pytest.raises(DeadlineExceededError, match=r"group 1: ranks 1, 2 of 3 did not join at .* within 0\.1 s"):
        meet(place(free_port(), num_ranks=3), timeout_s=0.1)


def test_a_rank_without_the_secret_is_kept_out() -> None:
    port = free_port()
    rendezvous = meet(place(port))
    with pytest.raises(WorkerFailedError, match="does not know the group's secret"):
        meet(place(port, rank=1, num_ranks=2, secret="another"))
    assert rendezvous.silent_ranks() == []


def test_the_secret_is_not_shown_with_a_place() -> None:
    assert "hidden" not in repr(place(1, secret="hidden"))


def test_who_waits_for_others_can_give_up_with_an_error_of_its_own() -> None:
    def check() -> None:
        raise WorkerFailedError("rank 1 ended with status 1")

    with pytest.raises(WorkerFailedError, match="rank 1 ended with status 1"):
        meet(place(free_port(), num_ranks=2), check=check)
