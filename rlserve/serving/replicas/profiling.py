"""A replica's engine under ``torch.profiler``: a thread waits for the end of each profile and writes its trace, while
other orders are carried out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.errors import WorkerFailedError
from rlserve.serving.replicas.messages import Done, Message, Order

if TYPE_CHECKING:
    from rlserve.engine import EngineLoop
    from rlserve.engine.stats.step_profile import StepProfile

logger = logging.getLogger(__name__)


class Profiling:
    """
    Args:
        send: hears what became of each profile.
    """

    def __init__(self, loop: EngineLoop, send: Callable[[Message], None]) -> None:
        self._loop = loop
        self._send = send
        self._is_busy = False
        """While a profile is taken and written."""

    def begin(self, order: Order) -> None:
        """Profile the next steps, and send :class:`Done` when the trace is written. Does not wait."""
        from rlserve.engine.stats.step_profile import StepProfile

        if self._is_busy:
            self._send(Done(number=order.number, error="a profile is being taken or written"))
            return
        self._is_busy = True
        StepProfile.warm_up()  # while the engine goes on
        profile = StepProfile(order.max_steps)
        self._loop.begin_profile(profile)
        threading.Thread(target=self._take, args=(profile, order), name="profile", daemon=True).start()

    def end(self) -> None:
        """End the profile of now, if there is one."""
        self._loop.end_profile()

    def _take(self, profile: StepProfile, order: Order) -> None:
        try:
            profile.ended.wait(order.max_s)
            self._loop.end_profile()
            num_bytes = profile.write(Path(order.trace_path))
            done = Done(number=order.number, num_steps=profile.num_steps, num_bytes=num_bytes)
        except OSError as error:
            logger.error("the profile cannot be written: %s", error)
            done = Done(number=order.number, error=f"the trace cannot be written: {error}")
        except WorkerFailedError:
            return  # the process ends, and the front hears of that
        self._is_busy = False
        try:
            self._send(done)
        except OSError:
            logger.info("the front has ended before it heard of the profile")
