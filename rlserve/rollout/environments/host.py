"""Many environments in one event loop: what a process that holds them does with its calls.

::

    Call ──► the environment's own method, within environment.timeout_s ──► Answer
    a loop that stands still for that long ──► the call that blocks it is answered with an error, and the process ends
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any
from weakref import WeakKeyDictionary

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.base import EnvironmentTask, Reply
from rlserve.rollout.environments.messages import Answer, Call
from rlserve.rollout.environments.reply_values import read_last_reply, read_reply
from rlserve.rollout.rewards.function_loading import location_in

logger = logging.getLogger(__name__)

BLOCKED = 3
"""Exit code of a process whose event loop stood still."""
_CALL: ContextVar[Call] = ContextVar("call")
_LOOKS_PER_TIMEOUT = 4
_LONGEST_LOOK_S = 1.0


class EnvironmentHost:
    """Holds environments. All but ``run`` happens in the thread of its event loop."""

    def __init__(self, make: Callable[[], Any], *, name: str, timeout_s: float, send: Callable[[Answer], None]) -> None:
        """``send`` may be called by two threads at once."""
        self._make = make
        self._name = name
        self._timeout_s = timeout_s
        self._send = send
        self._look_s = min(_LONGEST_LOOK_S, timeout_s / _LOOKS_PER_TIMEOUT)
        self._environments: dict[int, Any] = {}
        self._task_ids: dict[int, str] = {}
        """Names of what the environments were made for, for messages."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: WeakKeyDictionary[asyncio.Task[Any], Call | None] = WeakKeyDictionary()
        self._beat_s = time.monotonic()
        """When the event loop was last seen to go on."""

    async def run(self, receive: Callable[[], Call]) -> None:
        """Answer the calls that ``receive``, which blocks, gives another thread; ends with its EOFError."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.set_task_factory(self._make_task)

        def read() -> None:
            try:
                while True:
                    loop.call_soon_threadsafe(self._begin, receive())
            except EOFError:
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=read, daemon=True).start()
        threading.Thread(target=self._watch, args=(loop, threading.get_ident()), daemon=True).start()
        end = asyncio.create_task(ended.wait())
        while not end.done():
            self._beat_s = time.monotonic()
            await asyncio.wait([end], timeout=self._look_s)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **details: Any) -> asyncio.Task[Any]:
        """Note for what call each task is made, whoever makes it."""
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **details)
        self._calls[task] = _CALL.get(None)
        return task

    def _begin(self, call: Call) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: Call) -> None:
        _CALL.set(call)
        begin_s = time.monotonic()
        if isinstance(call.argument, EnvironmentTask):
            self._task_ids[call.session] = call.argument.id
        work = asyncio.create_task(self._perform(call))
        done, _ = await asyncio.wait([work], timeout=self._timeout_s)
        reply, error = None, None
        if not done:
            work.cancel()  # not waited for: it may be caught
            error = f"{self._place(call)} {call.action} gave no answer within environment.timeout_s={self._timeout_s:g}"
        elif work.cancelled():
            error = f"{self._place(call)} {call.action} was cancelled"
        elif (raised := work.exception()) is not None:
            error = f"{self._place(call)} {_wording(call, raised)}"
        else:
            reply = work.result()
        self._send(Answer(call_id=call.id, reply=reply, error=error, duration_s=time.monotonic() - begin_s))
        if call.action == "close":
            self._task_ids.pop(call.session, None)
            if error is not None:
                logger.warning("%s", error)

    async def _perform(self, call: Call) -> Reply | None:
        if call.action == "reset":
            environment = self._environments[call.session] = self._make()
            await _awaited(environment.reset(call.argument))
        elif call.action == "step":
            return read_reply(await _awaited(self._environments[call.session].step(call.argument)))
        elif call.action == "truncate":
            truncate = getattr(self._environments[call.session], "truncate", None)
            return read_last_reply(await _awaited(truncate()) if callable(truncate) else None)
        else:
            environment = self._environments.pop(call.session, None)  # the constructor may have failed
            if callable(close := getattr(environment, "close", None)):
                await _awaited(close())
        return None

    def _place(self, call: Call) -> str:
        return f"environment {self._name} on prompt {self._task_ids.get(call.session)}:"

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        """In a thread of its own: end the process where its event loop stands still."""
        while True:
            time.sleep(self._look_s)
            if time.monotonic() - self._beat_s <= self._timeout_s + self._look_s:
                continue
            task = asyncio.current_task(loop)
            call = None if task is None else self._calls.get(task)
            if call is not None:
                where = _user_line(sys._current_frames()[thread_id], self._make)
                message = (
                    f"{self._place(call)} {call.action} blocked the event loop of its process for more than "
                    f"environment.timeout_s={self._timeout_s:g}{where}; what waits must await"
                )
                self._send(Answer(call_id=call.id, error=message, duration_s=self._timeout_s))
            os._exit(BLOCKED)


async def _awaited(value: Any) -> Any:
    return await value if isawaitable(value) else value


def _wording(call: Call, error: BaseException) -> str:
    if isinstance(error, EnvironmentFailedError):  # of ``read_reply``
        return f"{call.action} {error}"
    return f"{call.action} raised {type(error).__name__}{location_in(error, ' at ')}: {error}"


def _user_line(frame: Any, make: Callable[[], Any]) -> str:
    """``, at file:line`` of the innermost frame that is of the file of the environment's class."""
    module = sys.modules.get(getattr(getattr(make, "func", make), "__module__", ""))
    lines = [each for each in traceback.extract_stack(frame) if each.filename == getattr(module, "__file__", None)]
    return f", at {lines[-1].filename}:{lines[-1].lineno}" if lines else ""
