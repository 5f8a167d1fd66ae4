"""Addresses and ports of this machine."""

from __future__ import annotations

import socket

from rlserve.distributed.addresses import LOOPBACK, address_towards, free_port, listen


def test_a_group_on_loopback_stays_there() -> None:
    assert address_towards(LOOPBACK, 1) == LOOPBACK


def test_a_free_port_can_be_served_and_a_served_one_is_not_free() -> None:
    with socket.create_server((LOOPBACK, free_port())) as served:
        assert free_port() != served.getsockname()[1]


def test_a_listening_socket_answers_on_its_own_address_alone() -> None:
    with listen() as listening:
        host, port = listening.getsockname()
        assert host == LOOPBACK
        socket.create_connection((host, port), timeout=5).close()
