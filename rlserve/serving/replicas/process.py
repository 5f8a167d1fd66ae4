"""A replica's process: an engine in its loop, behind one end of a socket pair.

::

    main thread:     receive ──► Submit, Abort ──► EngineLoop
    thread orders:   Order ──► EngineLoop, between two steps ──► Done
    thread deltas:   EngineLoop ──► new tokens of streamed requests ──► send
    thread progress: EngineLoop ──► whole answers of the others, and now and then what there is of them ──► send
    thread beats:    EngineLoop.stats ──► send, every beat interval, and where the front asks for it

Sending waits while the front does not read. Nothing is piled up meanwhile: tokens that nobody has asked for stand in
the engine. The process ends when the front closes its end, when the front ends, or when the engine fails.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.engine.stats.metrics import vllm_metrics
from rlserve.errors import UserError, WorkerFailedError
from rlserve.json_log import LogFormat, ProcessFields, log_to_stderr
from rlserve.processes import end_with_parent
from rlserve.serving.replicas.messages import Abort, Beat, Done, Message, News, Order, Ready, Refused, Start, Submit
from rlserve.serving.replicas.orders import Orders, read_weights
from rlserve.serving.replicas.wire import MessageReader, pack

if TYPE_CHECKING:
    from rlserve.engine import Engine, EngineLoop

logger = logging.getLogger(__name__)

_READ_BYTES = 2**18
_POLL_S = 1.0
_PROGRESS_INTERVAL_S = 0.5
"""So much of an answer that is not streamed is computed again, at most, if this process is lost."""
"""How often a thread that waits for news looks whether it is to end."""


class Channel:
    """One end of the socket pair, blocking. Any thread may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message; waits while the other end does not read.

        Raises:
            OSError: the other end is closed.
        """
        content = pack(message)
        with self._lock:
            self._connection.sendall(content)

    def receive(self) -> Iterator[Message]:
        """Messages until the other end, or :meth:`close`, ends it."""
        reader = MessageReader()
        while data := self._connection.recv(_READ_BYTES):
            yield from reader.feed(data)

    def close(self) -> None:
        """End what is being received, in whichever thread."""
        self._connection.shutdown(socket.SHUT_RDWR)


class ReplicaProcess:
    """Serves one engine to the other end of a channel until that is closed."""

    def __init__(self, engine: Engine, channel: Channel, start: Start) -> None:
        from rlserve.engine import EngineLoop

        self._channel = channel
        self._beat_interval_s = start.beat_interval_s
        self._ended = threading.Event()
        if start.is_paused:
            engine.pause()
        self._loop: EngineLoop = EngineLoop(engine)
        self._orders = Orders(engine, self._loop, channel.send, is_paused=start.is_paused)
        self._streams = self._loop.subscribe_deltas(start.max_pieces_per_s)
        self._answers = self._loop.subscribe_progress(_PROGRESS_INTERVAL_S)
        self._reports: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def serve(self, messages: Iterator[Message]) -> None:
        """Carry out what comes.

        Raises:
            WorkerFailedError: the engine has failed.
        """
        threads = [
            threading.Thread(target=self._run, args=(send,), name=send.__name__.strip("_"), daemon=True)
            for send in (self._send_deltas, self._send_progress, self._send_beats, self._orders.run)
        ]
        for thread in threads:
            thread.start()
        try:
            for message in messages:
                match message:
                    case Submit(requests=requests, streamed=streamed):
                        self._loop.submit(requests, self._streams if streamed else self._answers)
                    case Abort(request_ids=request_ids):
                        self._loop.abort(request_ids)
                    case Order(action="report"):
                        self._reports.put(message)
                    case Order():
                        self._orders.put(message)
        finally:
            self._ended.set()

    def _run(self, send: Callable[[], None]) -> None:
        """In a thread: send until the end. What fails here ends the process, through its main thread."""
        try:
            send()
        except (OSError, WorkerFailedError) as error:
            if not self._ended.is_set():
                logger.error("the replica ends: %s", error)
                self._ended.set()
                self._channel.close()

    def _send_deltas(self) -> None:
        while not self._ended.is_set():
            if deltas := self._streams.read(_POLL_S):
                self._channel.send(News(deltas=deltas))

    def _send_progress(self) -> None:
        while not self._ended.is_set():
            if deltas := self._answers.read(_POLL_S):
                self._channel.send(News(deltas=deltas))

    def _send_beats(self) -> None:
        report: Order | None = None
        while not self._ended.is_set():
            self._channel.send(self._beat())
            if report is not None:
                self._channel.send(Done(number=report.number))
            report = self._next_report()

    def _next_report(self) -> Order | None:
        """One that is asked for within a beat's interval."""
        try:
            return self._reports.get(timeout=self._beat_interval_s)
        except queue.Empty:
            return None

    def _beat(self) -> Beat:
        stats = self._loop.stats
        engine = stats.engine
        return Beat(
            num_steps=stats.num_steps,
            has_work=engine.num_running + engine.num_waiting > 0 and not self._orders.is_paused,
            busy_s=stats.busy_s,
            num_generated_tokens=engine.num_generated_tokens,
            weight_version=engine.weight_version,
            metrics=vllm_metrics(engine),
        )


def main(descriptor: int, parent: int, replica: str, log_format: LogFormat) -> int:
    """Serve behind the socket with this file descriptor; returns the exit code."""
    end_with_parent(parent)
    # Who ends all processes of a service at once means the front: it ends this one when its answers have ended.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    log_to_stderr(log_format, ProcessFields(replica=replica))
    channel = Channel(socket.socket(fileno=descriptor))
    messages = channel.receive()
    start = next(messages, None)
    if not isinstance(start, Start):
        return 0  # the front has ended
    from rlserve.engine import Engine
    from rlserve.engine.requests.folder_tokenizer import import_for_tokenizer

    import_for_tokenizer(Path(start.model_path))
    try:
        engine = Engine(start.model_path, start.engine, load_weights=start.weight_version == 0)
        if start.weight_version > 0:
            engine.load_weights(start.weight_version, read_weights(Path(start.model_path), engine.spec))
        for adapter, adapter_folder in start.adapters.items():
            engine.load_adapter(adapter, adapter_folder)
    except UserError as error:
        if start.weight_version > 0:  # a folder that was good once: this start has failed, the server has not
            logger.error("the replica cannot load version %d: %s", start.weight_version, error)
            return 1
        channel.send(Refused(message=str(error)))
        return error.exit_code
    channel.send(
        Ready(
            vocab_size=engine.spec.vocab_size,
            max_model_len=engine.max_model_len,
            eos_token_ids=engine.spec.eos_token_ids,
            max_num_sequences=engine.config.max_num_sequences,
        )
    )
    try:
        ReplicaProcess(engine, channel, start).serve(messages)
    except (ConnectionError, WorkerFailedError) as error:
        logger.error("the replica ends: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    # At once: what the engine has under way nobody waits for any more.
    os._exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], "json" if sys.argv[4] == "json" else "text"))
