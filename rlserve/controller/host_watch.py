"""How busy the processors are that CPU slots share: there, what one more slot does may be taken from the others."""

from __future__ import annotations

import asyncio

from rlserve.controller.context import RunContext
from rlserve.controller.events import StepEnded
from rlserve.controller.measuring import Measuring
from rlserve.controller.ports import ProcessorSource

_INTERVAL_S = 1.0


class HostWatch:
    """Asks again and again, and for the first step if that ends sooner."""

    def __init__(self, run: RunContext, measuring: Measuring, busy_shares: ProcessorSource) -> None:
        self._measuring = measuring
        self._busy_shares = busy_shares
        self._was_noted = False
        run.events.subscribe(StepEnded, self._note_first_step)

    async def watch(self) -> None:
        """Look at the processors until cancelled."""
        self._busy_shares()  # what was before the run is not of it
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self._note()

    def _note_first_step(self, _: StepEnded) -> None:
        if not self._was_noted:
            self._note()

    def _note(self) -> None:
        self._was_noted = True
        for node, busy_share in self._busy_shares().items():
            self._measuring.note_host(node, busy_share)
