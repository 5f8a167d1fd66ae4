"""The store where the ranks of a group meet."""

from __future__ import annotations

import socket

import pytest

from rlserve.errors import DeadlineExceededError, WorkerFailedError
from rlserve.trainers import Membership
from rlserve.trainers.elastic.rendezvous import Rendezvous


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def place(port: int, *, rank: int = 0, world_size: int = 1, secret: str = "s") -> Membership:
    return Membership(rank=rank, world_size=world_size, host="127.0.0.1", port=port, generation=1, secret=secret)


def test_the_store_listens_on_the_address_of_the_group_alone() -> None:
    port = free_port()
    rendezvous = Rendezvous(place(port), timeout_s=10)
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    assert rendezvous.silent_ranks() == []


def test_a_port_that_is_taken_is_named() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(DeadlineExceededError, match=r"rank 0 cannot serve its store at 127\.0\.0\.1:\d+ .*in use"),
    ):
        Rendezvous(place(taken.getsockname()[1]), timeout_s=10)


def test_the_port_is_free_again_once_the_rendezvous_is_gone() -> None:
    port = free_port()
    for _ in range(2):
        rendezvous = Rendezvous(place(port), timeout_s=10)
        del rendezvous


def test_missing_ranks_are_all_named() -> None:
    with pytest.raises(DeadlineExceededError, match=r"ranks 1, 2 of 3 did not join at .* within 0\.1 s"):
        Rendezvous(place(free_port(), world_size=3), timeout_s=0.1)


def test_a_rank_without_the_secret_is_kept_out() -> None:
    port = free_port()
    rendezvous = Rendezvous(place(port), timeout_s=10)
    with pytest.raises(WorkerFailedError, match="does not know the group's secret"):
        Rendezvous(place(port, rank=1, world_size=2, secret="another"), timeout_s=10)
    assert rendezvous.silent_ranks() == []


def test_the_secret_is_not_shown_with_a_place() -> None:
    assert "hidden" not in repr(place(1, secret="hidden"))
