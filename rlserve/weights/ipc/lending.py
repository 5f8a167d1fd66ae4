"""Loans: a borrower has what it was lent for as long as its connection stays, and a lender that ends closes them all.

Connections are of this machine, by a name that goes with its process, and only processes of the same user are served.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from rlserve.errors import ArgumentLostError

_ANSWER_S = 10.0
"""How long a borrower waits for an answer, which takes no time, and a lender for what is asked."""
_MAX_MESSAGE_BYTES = 2**16
_CREDENTIALS = struct.Struct("3i")
"""Process, user and group."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loan:
    """What a borrower finds something by, and what must live as long as it is borrowed."""

    handle: bytes
    kept: object


class Lender:
    """Serves borrowers, each in a thread of its own."""

    def __init__(self, find: Callable[[str], Loan | None]) -> None:
        """``find`` is asked by any thread for what borrowers name; None: it is gone."""
        self._find = find
        self.address = f"\0rlserve-{uuid.uuid4().hex}"
        self._is_closing = False
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.address)
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, name="lender of weights", daemon=True)
        self._thread.start()

    @property
    def is_serving(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Lend nothing more; what is borrowed stays until it is given back."""
        self._is_closing = True
        with suppress(OSError):  # it has failed before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        with self._socket:
            while not self._is_closing:
                try:
                    accepted, _ = self._socket.accept()
                except OSError:
                    if self._is_closing:
                        return
                    raise
                _, user, _ = _CREDENTIALS.unpack(
                    accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
                borrower = Connection(accepted.detach())
                if user == os.geteuid():
                    threading.Thread(target=self._lend, args=(borrower,), daemon=True).start()
                else:
                    borrower.close()

    def _lend(self, borrower: Connection) -> None:
        with borrower, suppress(EOFError, OSError):  # it is gone
            if not borrower.poll(_ANSWER_S):
                return
            loan = self._find(borrower.recv_bytes(_MAX_MESSAGE_BYTES).decode())
            if loan is not None:
                borrower.send_bytes(loan.handle)
                borrower.recv_bytes(_MAX_MESSAGE_BYTES)  # nothing comes: the end is that of the loan
            else:
                borrower.send_bytes(b"")


class Borrowed:
    """A loan, as the borrower has it."""

    def __init__(self, handle: bytes, connection: Connection) -> None:
        self.handle = handle
        self._connection = connection

    def is_lost(self, within_s: float) -> bool:
        """Whether the lender's process has ended, or does so within this time."""
        return self._connection.poll(within_s)


@contextmanager
def borrowed(address: str, name: str) -> Iterator[Borrowed]:
    """Borrow something for the length of the block.

    Raises:
        ArgumentLostError: it is not kept any more, the lender is gone, or does not answer.
    """
    with _asked(address, name) as connection:
        try:
            handle = connection.recv_bytes(_MAX_MESSAGE_BYTES) if connection.poll(_ANSWER_S) else None
        except (EOFError, OSError) as error:
            raise ArgumentLostError("is gone with its sender") from error
        if handle is None:
            raise ArgumentLostError(f"is lost: its sender has not answered for {_ANSWER_S:g} s")
        if not handle:
            raise ArgumentLostError("is not kept any more")
        yield Borrowed(handle, connection)


def _asked(address: str, name: str) -> Connection:
    lender = socket.socket(socket.AF_UNIX)
    try:
        lender.settimeout(_ANSWER_S)
        lender.connect(address)
        lender.settimeout(None)
        connection = Connection(lender.detach())
        connection.send_bytes(name.encode())
    except OSError as error:
        lender.close()
        raise ArgumentLostError(f"is gone with its sender ({error.strerror or error})") from error
    return connection
