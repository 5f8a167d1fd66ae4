"""One replica as the front sees it: its process, the socket to it, and how it stands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count

from rlserve.engine.stats.metrics import Value
from rlserve.errors import UserError, WorkerLostError
from rlserve.json_log import LogFormat
from rlserve.serving.replicas.messages import Beat, Done, Message, News, Order, OrderAction, Ready, Refused, Start
from rlserve.serving.replicas.speed import SpeedMeter
from rlserve.serving.replicas.state import ReplicaState, Signs, check_move
from rlserve.serving.replicas.wire import MessageReader, pack

logger = logging.getLogger(__name__)

_READ_BYTES = 2**18
_EXIT_GRACE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ReplicaPlace:
    """Where a replica's process runs, and what it loads."""

    name: str
    start: Start
    environment: Mapping[str, str]
    log_format: LogFormat = "text"


class Replica:
    """Starts a process, talks to it, and kills it. Decides nothing; ``on_news`` hears what its engine made."""

    def __init__(self, place: ReplicaPlace, on_news: Callable[[News], None], clock: Callable[[], float]) -> None:
        self.name = place.name
        self.ready: Ready | None = None
        """What its engine can take; None until it was ready for the first time."""
        self.metrics: Mapping[str, Value] = {}
        """As of its last beat."""
        self.busy_s = 0.0
        """That its engine has computed, as of its last beat."""
        self.state = ReplicaState.LOST
        self.num_failed_starts = 0
        """In a row."""
        self.weight_version = place.start.weight_version
        """As of its last beat."""
        self.start = place.start
        """What its process is told when it is started next."""
        self.started_version = -1
        """Of the weights that its process was started with; -1 before there was one."""
        self._orders: dict[int, asyncio.Future[Done]] = {}
        self._order_numbers = count()
        self._place = place
        self._log_fields = {"replica": place.name}
        self._on_news = on_news
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._started_s = self._last_beat_s = self._last_progress_s = clock()
        self._num_steps = 0
        self._speed = SpeedMeter()

    @property
    def tokens_per_s(self) -> float | None:
        """While its engine was busy of late; None before it was."""
        return self._speed.tokens_per_s

    @property
    def signs(self) -> Signs:
        """What its health is judged by."""
        return Signs(
            state=self.state,
            started_s=self._started_s,
            last_beat_s=self._last_beat_s,
            last_progress_s=self._last_progress_s,
        )

    @property
    def process_id(self) -> int | None:
        """Of its process, None where there is none."""
        return None if self._process is None else self._process.pid

    def move_to(self, state: ReplicaState, reason: str = "") -> None:
        """Go over to another state."""
        check_move(self.name, self.state, state)
        level = logging.WARNING if state in (ReplicaState.SUSPECT, ReplicaState.LOST) else logging.INFO
        logger.log(
            level, "replica %s is %s%s", self.name, state, f": {reason}" if reason else "", extra=self._log_fields
        )
        self.state = state
        if state is ReplicaState.STARTING:
            self.started_version = self.start.weight_version

    async def run(self) -> None:
        """Start the process and listen to it until its socket is closed. :meth:`reap` follows.

        Raises:
            UserError: its engine cannot be had with this model and configuration.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "rlserve.serving.replicas.process", str(theirs.fileno()), str(os.getpid())]
            command += [self._place.name, self._place.log_format]
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self._place.environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the front, which lets answers end first
            )
        ours.setblocking(False)
        self._started_s, self._num_steps, self._speed = self._clock(), 0, SpeedMeter()
        stream, self._writer = await asyncio.open_connection(sock=ours)
        try:
            self.send(self.start)
            await self._listen(stream)
        finally:
            self._writer.close()
            self._writer = None
            for future in self._orders.values():
                if not future.done():
                    future.set_exception(WorkerLostError(f"replica {self.name} was lost"))

    async def reap(self) -> None:
        """Wait for the end of the process, whose socket is closed."""
        assert self._process is not None
        try:
            await asyncio.to_thread(self._process.wait, _EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            await asyncio.to_thread(self._process.wait)
        logger.info(
            "the process of replica %s ended with exit code %s",
            self.name,
            self._process.returncode,
            extra=self._log_fields,
        )

    def send(self, message: Message) -> None:
        """Send a message; what cannot be sent any more is lost with the process, which :meth:`run` tells of.

        Raises:
            WorkerLostError: there is no process.
        """
        if self._writer is None:
            raise WorkerLostError(f"replica {self.name} has no process")
        self._writer.write(pack(message))

    async def order(self, order: Order) -> Done:
        """Have an order carried out, and wait for what became of it.

        Raises:
            WorkerLostError: there is no process, or it ended before.
        """
        number = next(self._order_numbers)
        self._orders[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(replace(order, number=number))
            return await self._orders[number]
        finally:
            del self._orders[number]

    def tell(self, action: OrderAction) -> None:
        """Send an order that nobody waits for. Nothing where there is no process yet: :attr:`start` tells it."""
        if self._writer is not None:
            self.send(Order(number=next(self._order_numbers), action=action))

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        reader = MessageReader()
        with contextlib.suppress(ConnectionError):  # killed with something unread: as good as closed
            while data := await stream.read(_READ_BYTES):
                for message in reader.feed(data):
                    self._take(message)

    def _take(self, message: Message) -> None:
        if self.state in (ReplicaState.LOST, ReplicaState.IDLE, ReplicaState.STOPPED):
            return  # what its process said before it was given up
        now = self._last_beat_s = self._clock()
        match message:
            case News():
                self._on_news(message)
            case Beat():
                if message.num_steps != self._num_steps or not message.has_work:
                    self._num_steps, self._last_progress_s = message.num_steps, now
                self._speed.note(message.num_generated_tokens, message.busy_s)
                self.metrics, self.busy_s = message.metrics, message.busy_s
                self.weight_version = message.weight_version
            case Done():
                future = self._orders.get(message.number)
                if future is not None and not future.done():  # else nobody waits for it any more
                    future.set_result(message)
            case Ready():
                self.ready, self.num_failed_starts, self._last_progress_s = message, 0, now
                self.move_to(ReplicaState.READY)
            case Refused(message=reason):
                raise UserError(reason)
