"""Calls to worker processes: every answer has a deadline, and every failure is one of our own errors.

Ray wraps what a worker raises in an error of its own, whose text is a traceback. Here our errors come out as they
were raised, and everything else as one line.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

from rlserve.errors import ArgumentLostError, RlserveError, WorkerFailedError, WorkerLostError

_GONE = "what it was to be given is gone, the node that held it died"


async def answer(call: Awaitable[Any], *, timeout_s: float, what: str) -> Any:
    """What a call to a worker returns.

    Args:
        call: the reference that a remote method gave.
        timeout_s: deadline in seconds.
        what: the worker and what it does; begins the message of every error raised here.

    Raises:
        WorkerLostError: the worker died, or did not answer before the deadline.
        WorkerFailedError: the worker lives, but raised something that is none of our errors.
        ArgumentLostError: what the call was to be given is gone: the node that held it died, and not the worker.
        RlserveError: one of our errors, as the worker raised it.
    """
    try:
        # Not wait_for: that of Python 3.11 swallows a cancellation that comes just when the answer does.
        async with asyncio.timeout(timeout_s):
            return await call
    except Exception as error:
        if type(error) is TimeoutError:  # not of a subclass: where a worker raised one, Ray's error is one too
            raise WorkerLostError(f"{what}: no answer for {timeout_s:g} s") from None
        # Ray's error for what a worker raised is one of ours as well, by a class made for the two, with a stack trace
        # as its message. Where Ray was never imported none of its errors can have come.
        ours = _translated(error, what) if "ray" in sys.modules else None
        if ours is None:
            raise
        raise ours from ours.__cause__


def _translated(error: Exception, what: str) -> RlserveError | None:
    """Our own error for one of Ray's; None for any other."""
    from ray.exceptions import (  # only here: whoever hands in other workers than Ray's needs no Ray
        ObjectLostError,
        RayActorError,
        RayError,
        RayTaskError,
    )

    if isinstance(error, RayTaskError):
        if isinstance(error.cause, RlserveError):
            return error.cause
        if isinstance(error.cause, ObjectLostError):
            return ArgumentLostError(f"{what}: {_GONE}")
        lines = str(error.cause).splitlines() or [""]
        return WorkerFailedError(f"{what}: {type(error.cause).__name__}: {lines[0]}")
    if isinstance(error, RayActorError):
        return WorkerLostError(f"{what}: its process died")
    if isinstance(error, ObjectLostError):
        return ArgumentLostError(f"{what}: {_GONE}")
    if isinstance(error, RayError):
        failure = WorkerFailedError(f"{what}: {str(error).splitlines()[0]}")
        failure.__cause__ = error
        return failure
    return None
