"""A key-value store for processes that know a common secret.

torch's own TCPStore serves whoever connects: all keys can be listed, changed and deleted. Here both sides prove first
that they know the secret, without sending it, and only then is anything answered:

    client                                  server
      │ ◄──────────────────────────── 32 random bytes
      │ 32 random bytes, HMAC("client", both) ──────► │ closes if it is wrong
      │ ◄──────────────── HMAC("server", both)        │
      │ request ────────────────────────────────────► │
      │ ◄──────────────────────────────────── answer  │ …

What follows is neither encrypted nor signed: this keeps out whoever can connect, not whoever can change what others
send.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from rlserve.errors import DeadlineExceededError, WorkerFailedError

logger = logging.getLogger(__name__)

_NONCE_BYTES = 32
_MAX_MESSAGE_BYTES = 2**24
_HANDSHAKE_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.01
_FOUND, _ABSENT = b"1", b"0"


def connect(
    host: str,
    port: int,
    secret: str,
    *,
    timeout_s: float,
    serve: bool = False,
    listening: socket.socket | None = None,
    while_waiting: Callable[[], None] = lambda: None,
) -> RendezvousStore:
    """A store at an address, tried until it is there.

    Args:
        serve: serve it too, from this process, on that address alone, until the returned object is gone.
        listening: the socket to serve on, if there is one already.
        while_waiting: called again and again while this waits, and while the store does; may raise to give up.

    Raises:
        OSError: it cannot be served at this address.
        DeadlineExceededError: nobody serves it within ``timeout_s``.
        WorkerFailedError: somebody does, but does not know the secret.
    """
    server = None
    if serve:
        server = _Server(listening or socket.create_server((host, port)), secret)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(0.05, deadline - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise DeadlineExceededError(str(error)) from error
            while_waiting()
            time.sleep(_POLL_INTERVAL_S)
    return RendezvousStore(connection, secret, timeout_s=timeout_s, server=server, while_waiting=while_waiting)


class StoreLostError(WorkerFailedError):
    """The process that serves the store is gone."""


class RendezvousStore(Store):
    """One process's end: torch's ``Store``, of which this has what process groups use. Whatever waits, polls.

    Every method raises ``StoreLostError`` once the server is gone.
    """

    def __init__(
        self,
        connection: socket.socket,
        secret: str,
        *,
        timeout_s: float,
        server: _Server | None = None,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._while_waiting = while_waiting
        self._connection = connection
        self._timeout = timedelta(seconds=timeout_s)
        self._lock = threading.Lock()
        self._finalize = weakref.finalize(self, _close, connection, server)
        try:
            connection.settimeout(timeout_s)
            _prove_to_server(connection, secret.encode())
        except TimeoutError as error:
            self._finalize()
            raise DeadlineExceededError("it was reached and does not answer") from error
        except (OSError, ValueError) as error:
            self._finalize()
            raise WorkerFailedError(f"the other side does not know the group's secret ({error})") from error

    def set(self, key: str, value: str | bytes) -> None:
        """Write a key."""
        self._ask(b"set", key.encode(), _bytes(value))

    def get(self, key: str) -> bytes:
        """The value of a key, waited for."""
        self.wait([key])
        return self._ask(b"get", key.encode())[0]

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        return self._ask(b"check", *(key.encode() for key in keys)) == [_FOUND]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are there.

        Raises:
            DeadlineExceededError: they did not come in time.
        """
        waited = (timeout or self._timeout).total_seconds()
        deadline = time.monotonic() + waited
        while not self.check(keys):
            if time.monotonic() >= deadline:
                raise DeadlineExceededError(f"the keys {', '.join(keys)} did not come within {waited:g} s")
            self._while_waiting()
            time.sleep(_POLL_INTERVAL_S)

    def add(self, key: str, amount: int) -> int:
        """Add to a number, 0 at first; the sum."""
        return int(self._ask(b"add", key.encode(), str(amount).encode())[0])

    def delete_key(self, key: str) -> bool:
        """Delete a key; whether it was there."""
        return self._ask(b"delete", key.encode()) == [_FOUND]

    @property
    def timeout(self) -> timedelta:
        """How long ``get`` and ``wait`` wait."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change ``timeout``."""
        self._timeout = timeout

    def _ask(self, *request: bytes) -> list[bytes]:
        try:
            with self._lock:
                _send(self._connection, request)
                return _receive(self._connection)
        except (OSError, ValueError) as error:
            raise StoreLostError(f"the store of rank 0 is gone ({error})") from error


class _Server:
    """Answers on a listening socket, each connection in a thread of its own."""

    def __init__(self, listening: socket.socket, secret: str) -> None:
        self._listening = listening
        self._secret = secret.encode()
        self._values: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        threading.Thread(target=self._accept, name="rendezvous store", daemon=True).start()

    def close(self) -> None:
        """Free the port and end all connections."""
        for each in (self._listening, *self._connections):
            _shut_down(each)

    def _accept(self) -> None:
        with self._listening:
            while True:
                try:
                    connection, address = self._listening.accept()
                except OSError:  # closed
                    return
                self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        with connection:
            try:
                connection.settimeout(_HANDSHAKE_TIMEOUT_S)
                _check_client(connection, self._secret)
            except (OSError, ValueError) as error:
                logger.warning("refused a connection from %s to the group's store: %s", address[0], error)
                return
            try:
                connection.settimeout(None)
                while True:
                    _send(connection, self._answer(*_receive(connection)))
            except (OSError, ValueError) as error:
                logger.debug("the store's connection from %s has ended: %s", address[0], error)

    def _answer(self, operation: bytes, *arguments: bytes) -> list[bytes]:
        with self._lock:
            match operation, arguments:
                case b"set", (key, value):
                    self._values[key] = value
                    return []
                case b"get", (key,):
                    return [self._values[key]]
                case b"check", keys:
                    return [_FOUND if all(key in self._values for key in keys) else _ABSENT]
                case b"add", (key, amount):
                    self._values[key] = b"%d" % (int(self._values.get(key, b"0")) + int(amount))
                    return [self._values[key]]
                case b"delete", (key,):
                    return [_ABSENT if self._values.pop(key, None) is None else _FOUND]
        raise ValueError(f"no such request: {operation!r} with {len(arguments)} arguments")


def _check_client(connection: socket.socket, secret: bytes) -> None:
    """The server's side of the handshake; raises ``ValueError`` if the client does not know the secret."""
    ours = os.urandom(_NONCE_BYTES)
    connection.sendall(ours)
    theirs, proof = _exactly(connection, _NONCE_BYTES), _exactly(connection, hashlib.sha256().digest_size)
    if not hmac.compare_digest(proof, _proof(secret, b"client", ours + theirs)):
        raise ValueError("it does not know the secret")
    connection.sendall(_proof(secret, b"server", ours + theirs))


def _prove_to_server(connection: socket.socket, secret: bytes) -> None:
    """The client's side; raises ``ValueError``, or ``OSError`` where the server hangs up, if the secrets differ."""
    theirs, ours = _exactly(connection, _NONCE_BYTES), os.urandom(_NONCE_BYTES)
    connection.sendall(ours + _proof(secret, b"client", theirs + ours))
    proof = _exactly(connection, hashlib.sha256().digest_size)
    if not hmac.compare_digest(proof, _proof(secret, b"server", theirs + ours)):
        raise ValueError("its proof is wrong")


def _proof(secret: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, role + nonces, "sha256")


def _send(connection: socket.socket, parts: Sequence[bytes]) -> None:
    """Number of parts, their lengths, then the parts."""
    lengths = struct.pack(f">{len(parts) + 1}I", len(parts), *map(len, parts))
    connection.sendall(lengths + b"".join(parts))


def _receive(connection: socket.socket) -> list[bytes]:
    (number,) = struct.unpack(">I", _exactly(connection, 4))
    lengths = struct.unpack(f">{number}I", _exactly(connection, 4 * number))
    if sum(lengths) > _MAX_MESSAGE_BYTES:
        raise ValueError("a message is too long")
    return [_exactly(connection, length) for length in lengths]


def _exactly(connection: socket.socket, length: int) -> bytes:
    if length > _MAX_MESSAGE_BYTES:
        raise ValueError("a message is too long")
    received = bytearray()
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise ConnectionResetError("the connection was closed")
        received += part
    return bytes(received)


def _close(connection: socket.socket, server: _Server | None) -> None:
    _shut_down(connection)
    connection.close()
    if server is not None:
        server.close()


def _shut_down(connection: socket.socket) -> None:
    """Wake up whoever waits on the socket, so that it closes it."""
    with contextlib.suppress(OSError):  # not connected any more
        connection.shutdown(socket.SHUT_RDWR)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
