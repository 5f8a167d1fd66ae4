"""Receiving ends of a transport in processes of their own, driven one call at a time over pipes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rlserve.weights.transports.base import ReceivingEnd

ANSWER_S = 240.0
"""Far above what an answer takes."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["rlserve.weights.transports.factory"])


class ReceiverProcess:
    """One process with one receiving end in it. ``start`` sends a cargo, ``result`` waits for what came of it."""

    def __init__(self, make_end: Callable[[], ReceivingEnd]) -> None:
        self._pipe, far_end = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(far_end, make_end), daemon=True)
        self.process.start()
        far_end.close()

    def start(self, cargo: Any) -> None:
        """Let it receive."""
        self._pipe.send(cargo)

    def result(self) -> str:
        """SHA-256 of the payload that it received, or its error."""
        assert self._pipe.poll(ANSWER_S), "the receiver does not answer"
        found = self._pipe.recv()
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, str)
        return found

    def kill(self) -> None:
        """The process is gone."""
        self.process.kill()
        self.process.join()


@contextmanager
def receiver_processes(number: int, make_end: Callable[[], ReceivingEnd]) -> Iterator[list[ReceiverProcess]]:
    """Start them with one thread each; kill them at the end."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    receivers = [ReceiverProcess(make_end) for _ in range(number)]
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
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
