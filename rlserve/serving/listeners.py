"""Sockets that clients and operators connect to."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from rlserve.errors import UserError
from rlserve.serving.config import ServeConfig

_BACKLOG = 2048


@contextlib.contextmanager
def listening_on(config: ServeConfig) -> Iterator[socket.socket]:
    """The clients' listener while the context is open.

    Raises:
        UserError: the address cannot be had.
    """
    if config.unix_socket is None:
        with contextlib.closing(listen(config.host, config.port)) as listener:
            yield listener
        return
    path = Path(config.unix_socket).expanduser()
    with contextlib.closing(_listen_at(path)) as listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _listen_at(path: Path) -> socket.socket:
    """A Unix socket that this user alone may connect to. One that nobody listens on any more gives way."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.is_socket():
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
                if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                    path.unlink()
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"unix_socket={path} cannot be listened on ({error}): choose another path") from error
    finally:
        os.umask(before)
    return listener


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error}): choose another port") from error


def address_of(config: ServeConfig, listener: socket.socket) -> str:
    """What clients take as the base of their URLs, or connect to."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    scheme = "http" if config.access.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1"
