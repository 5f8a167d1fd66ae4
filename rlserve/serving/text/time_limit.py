"""Python code that may take too long, in a thread that can be interrupted."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

from rlserve.errors import DeadlineExceededError

T = TypeVar("T")


class _Interrupted(BaseException):
    """Raised in the thread; nothing that handles ordinary errors catches it."""


async def run_within(function: Callable[[], T], timeout_s: float, what: str) -> T:
    """Run a function in another thread, and interrupt it between two of its bytecodes when the time is up.

    Raises:
        DeadlineExceededError: it took too long.
    """
    lock = threading.Lock()
    running: list[int] = []

    def run() -> T:
        with lock:
            running.append(threading.get_ident())
        try:
            return function()
        finally:
            with lock:
                running.clear()

    work = asyncio.ensure_future(asyncio.to_thread(run))
    done, _ = await asyncio.wait([work], timeout=timeout_s)
    if done:
        return work.result()
    with lock:
        for thread in running:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Interrupted))
    work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    raise DeadlineExceededError(f"{what} took more than {timeout_s:g} s")
