"""Addresses and ports of this machine. The standard library alone."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


def listen(host: str = LOOPBACK) -> socket.socket:
    """A listening socket on a free port."""
    return socket.create_server((host, 0))


def free_port(host: str = LOOPBACK) -> int:
    """A port that is free now. Another process may take it before it is used: where the same process is going to
    serve it, ``listen`` is safer."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def address_towards(host: str, port: int) -> str:
    """The address of this machine that faces another one, so that a group on loopback stays on loopback."""
    family, kind, protocol, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(peer)
        address: str = probe.getsockname()[0]
    return address
