"""Receiving ends of a transport in processes of their own, driven one call at a time over pipes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from forked import ForkedProcess

from rlserve.weights.transports.base import ReceivingEnd


class ReceiverProcess(ForkedProcess):
    """One process with one receiving end in it. ``send`` gives it a cargo, ``result`` waits for what came of it."""

    def __init__(self, make_end: Callable[[], ReceivingEnd]) -> None:
        super().__init__(_serve, make_end)

    def result(self) -> str:
        """SHA-256 of the payload that it received."""
        found = super().result()
        assert isinstance(found, str)
        return found


@contextmanager
def receiver_processes(number: int, make_end: Callable[[], ReceivingEnd]) -> Iterator[list[ReceiverProcess]]:
    """Start them with one thread each; kill them at the end."""
    receivers = [ReceiverProcess(make_end) for _ in range(number)]
    try:
        for receiver in receivers:
            receiver.result()  # it is up
        yield receivers
    finally:
        for receiver in receivers:
            receiver.kill()


def _serve(pipe: Any, make_end: Callable[[], ReceivingEnd]) -> None:
    end = make_end()
    pipe.send("up")
    while True:
        cargo = pipe.recv()
        try:
            answer: Any = hashlib.sha256(end.receive(cargo).payload.cpu().numpy()).hexdigest()
        except Exception as error:
            answer = error
        pipe.send(answer)
