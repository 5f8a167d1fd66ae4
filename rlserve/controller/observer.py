"""Reads everything that a policy looks at, once."""

from __future__ import annotations

from rlserve.config.pool_split import gang_view
from rlserve.controller.context import RunContext
from rlserve.controller.gang_book import ROLES, GangBook
from rlserve.controller.load import LoadReader
from rlserve.controller.measuring import Measuring
from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import Admission, GangView, Observation
from rlserve.pool.gangs import Gang


class Observer:
    """Asks those who own it."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        *,
        load: LoadReader,
        measuring: Measuring,
        admission: Admission,
        num_steps: int,
        train_on_spot: bool,
    ) -> None:
        """``num_steps``: of the whole run."""
        self._run = run
        self._num_steps = num_steps
        self._book = book
        self._load = load
        self._measuring = measuring
        self._admission = admission
        self._train_on_spot = train_on_spot

    def observe(self, *, moving: bool, last_move_end_s: float | None) -> Observation:
        """The run now."""
        load, present = self._load.read(), self._book.present
        return Observation(
            time_s=self._run.clock.now(),
            queue_length=load.num_waiting,
            client_queue=load.client_queue,
            num_buffered=load.num_buffered,
            num_in_flight=load.num_in_flight,
            trainer_waiting=load.trainer_waiting,
            num_steps_left=self._num_steps - self._run.counters.num_steps,
            admission=self._admission,
            measured=self._measuring.figures(),
            gangs=tuple(self._view(gang, moving=moving) for gang in present),
            legal_trainer_sizes=tuple(range(1, len(present))),
            moving=moving,
            last_move_end_s=last_move_end_s,
        )

    def _view(self, gang: Gang, *, moving: bool) -> GangView:
        state = self._book.state(gang)
        return gang_view(
            gang,
            train_on_spot=self._train_on_spot,
            role=ROLES.get(state),
            idle=state is GangState.IDLE and not moving,
            alive=state is not GangState.DEAD,
            leaving=gang.id in self._book.leaving,
        )
