"""Calls to worker processes: every answer has a deadline, and every failure is one of our own errors.

Ray wraps what a worker raises in an error of its own, whose text is a traceback. Here our errors come out as they
were raised, and everything else as one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

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
        return await asyncio.wait_for(call, timeout_s)
    except RayTaskError as error:  # before TimeoutError, which it is too where the worker raised one
        if isinstance(error.cause, RlserveError):
            raise error.cause from None
        if isinstance(error.cause, ObjectLostError):
            raise ArgumentLostError(f"{what}: {_GONE}") from None
        lines = str(error.cause).splitlines() or [""]
        raise WorkerFailedError(f"{what}: {type(error.cause).__name__}: {lines[0]}") from None
    except RayActorError:
        raise WorkerLostError(f"{what}: its process died") from None
    except ObjectLostError:
        raise ArgumentLostError(f"{what}: {_GONE}") from None
    except RayError as error:
        raise WorkerFailedError(f"{what}: {str(error).splitlines()[0]}") from error
    except TimeoutError:
        raise WorkerLostError(f"{what}: no answer for {timeout_s:g} s") from None
