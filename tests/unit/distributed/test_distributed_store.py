"""The store where ranks meet: who is let in, and what it holds."""

from __future__ import annotations

import socket
import struct
from datetime import timedelta

import pytest

from rlserve.distributed.store import RendezvousStore, connect
from rlserve.errors import DeadlineExceededError, WorkerFailedError

SECRET = "what only the ranks know"


@pytest.fixture
def served() -> tuple[RendezvousStore, int]:
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    return connect("127.0.0.1", port, SECRET, timeout_s=10, serve=True, listening=listening), port


def closes(connection: socket.socket) -> bool:
    """Whether the other side says nothing more and closes."""
    connection.settimeout(20)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_both_ends_see_the_same_keys(served: tuple[RendezvousStore, int]) -> None:
    store, port = served
    other = connect("127.0.0.1", port, SECRET, timeout_s=10)
    other.set("a", b"\x00\xff")
    assert store.get("a") == b"\x00\xff"
    assert (store.add("n", 2), other.add("n", 3)) == (2, 5)
    assert other.check(["a", "n"])
    assert not other.check(["a", "b"])
    assert (store.delete_key("a"), store.delete_key("a"), other.check(["a"])) == (True, False, False)


def test_a_key_that_does_not_come_is_named(served: tuple[RendezvousStore, int]) -> None:
    with pytest.raises(DeadlineExceededError, match=r"the keys b did not come within 0\.02 s"):
        served[0].wait(["b"], timedelta(seconds=0.02))


def test_a_wrong_secret_is_turned_away_and_harms_nobody(served: tuple[RendezvousStore, int]) -> None:
    store, port = served
    store.set("a", "1")
    with pytest.raises(WorkerFailedError, match="does not know the group's secret"):
        connect("127.0.0.1", port, "guessed", timeout_s=10)
    assert store.get("a") == b"1"


@pytest.mark.parametrize("said", [b"\x00" * 64, struct.pack(">4I", 2, 3, 1, 1) + b"set" + b"ab" + b"\x00" * 64])
def test_nothing_is_answered_without_the_handshake(served: tuple[RendezvousStore, int], said: bytes) -> None:
    store, port = served
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        assert len(stranger.recv(32, socket.MSG_WAITALL)) == 32
        stranger.sendall(said)
        assert closes(stranger)
    assert not store.check(["a"])


def test_a_proof_that_was_listened_to_lets_nobody_in(served: tuple[RendezvousStore, int]) -> None:
    """It is over random numbers of both sides."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        impostor, _ = listening.accept()
    with impostor:
        impostor.sendall(b"\x07" * 32)
        impostor.shutdown(socket.SHUT_WR)
        with pytest.raises(WorkerFailedError):
            RendezvousStore(client, SECRET, timeout_s=10)
        proof = impostor.recv(64, socket.MSG_WAITALL)
    with socket.create_connection(("127.0.0.1", served[1])) as stranger:
        stranger.recv(32, socket.MSG_WAITALL)
        stranger.sendall(proof)
        assert closes(stranger)


def test_a_server_without_the_secret_is_not_believed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        impostor, _ = listening.accept()
        with impostor:
            impostor.sendall(b"\x07" * 32 + b"\x00" * 32)
            with pytest.raises(WorkerFailedError, match="its proof is wrong"):
                RendezvousStore(client, SECRET, timeout_s=10)


def test_an_address_that_nobody_serves_is_an_error_at_the_deadline() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(DeadlineExceededError, match="refused"):
            connect("127.0.0.1", unused.getsockname()[1], SECRET, timeout_s=0.05)


def test_the_store_is_gone_with_who_served_it(served: tuple[RendezvousStore, int]) -> None:
    store, port = served
    other = connect("127.0.0.1", port, SECRET, timeout_s=10)
    store._finalize()
    with pytest.raises(WorkerFailedError, match="the store of rank 0 is gone"):
        other.check(["a"])
    socket.create_server(("127.0.0.1", port)).close()
