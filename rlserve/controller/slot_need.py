"""How many slots the run could use: reads the queue and the replicas, and asks ``rlserve.pool.sharing.need``."""

from __future__ import annotations

from rlserve.controller.context import RunContext
from rlserve.controller.gang_book import GangBook
from rlserve.controller.load import LoadReader
from rlserve.controller.replicas import Replicas
from rlserve.manager.gang_table import GangState
from rlserve.pool.sharing.need import Load, Need, need_after


class SlotNeed:
    """Looks whenever it is asked."""

    def __init__(self, run: RunContext, book: GangBook, load: LoadReader, replicas: Replicas, *, idle_s: float) -> None:
        self._run = run
        self._book = book
        self._load = load
        self._replicas = replicas
        self._idle_s = idle_s
        self._need = Need()
        self._num_engine_steps: dict[str, int] = {}

    def useful(self, num_slots: int) -> int | None:
        """Of a run that has ``num_slots``; None is as many as it gets."""
        load = self._load.read()
        look = Load(
            time_s=self._run.clock.now(),
            num_steps=self._run.counters.num_steps,
            num_slots=num_slots,
            has_queue=load.num_waiting > 0 or load.client_queue > 0,
            idle=self._idle(),
        )
        self._need = need_after(self._need, look, idle_s=self._idle_s)
        return self._need.useful

    def _idle(self) -> dict[str, int]:
        """Slots of each gang whose engine has nothing, and has not computed since it was looked at last."""
        stats, before = self._replicas.stats, self._num_engine_steps
        self._num_engine_steps = {slot_id: each.num_steps for slot_id, each in stats.items()}
        return {
            gang.id: len(gang.slots)
            for gang in self._book.present
            if self._book.state(gang) is GangState.ROLLOUT
            and (now := stats.get(gang.leader)) is not None
            and now.num_running + now.num_waiting == 0
            and before.get(gang.leader) == now.num_steps
        }
