"""The training side: a step on each batch, on as many gangs as there are; the group changes between two steps.

::

    buffer.take ──► step ──► changes of the group that wait ──► snapshot ──► commit, publish ──► buffer.take …
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from rlserve.manager.leaving import TrainersNow
from rlserve.manager.measurement.readings import StepDone
from rlserve.simulate.clock import Clock, Latch
from rlserve.simulate.generation import Generation
from rlserve.simulate.journal import Journal
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.spending import SimulatedStep
from rlserve.simulate.work import Scored


class Training:
    """Owns the group of trainers and the step under way."""

    def __init__(
        self,
        clock: Clock,
        scenario: Scenario,
        journal: Journal,
        generation: Generation,
        *,
        publish: Callable[[int], None],
    ) -> None:
        """``publish`` is given each new version of the weights."""
        self.members: dict[str, str] = {}
        """Types of the gangs that train, by id, in order of joining."""
        self.waiting = False
        """For a batch."""
        self._clock = clock
        self._scenario = scenario
        self._journal = journal
        self._generation = generation
        self._publish = publish
        self._changes: deque[tuple[Callable[[], float | None], Latch]] = deque()
        self._next_stage = Latch()
        self._num_tokens: int | None = None
        self._types: tuple[str, ...] = ()
        """Of the gangs that made the step, who are others once the group has changed after it."""
        self._batch: list[Scored] | None = None
        self._broken: list[Scored] | None = None
        """Batch of a step that lost a trainer, and is done again."""
        self._busy = False
        self._computing = False
        self._gang_ids: tuple[str, ...] = ()
        """Those gangs."""
        self._since_s = 0.0
        """When the last step had ended."""
        self._broken_s = 0.0
        """Tries of this step that were broken off."""
        self._step = 0
        """Number of the step under way; a step that is broken off is another's."""
        self._work_began_s = 0.0
        self._work_s = 0.0
        self._wait_began_s = 0.0
        self._paused_s = 0.0
        """Of the time since then, what changes of the group took."""

    @property
    def is_computing(self) -> bool:
        """A step is under way."""
        return self._computing

    @property
    def now(self) -> TrainersNow:
        """What the trainers are doing."""
        return TrainersNow(
            types=tuple(self.members.values()),
            num_tokens=self._num_tokens,
            step_begin_s=self._work_began_s if self._computing else None,
            waiting=self.waiting,
        )

    @property
    def next_stage(self) -> Latch:
        """Opens when a step begins or ends, or training begins to wait for a batch."""
        return self._next_stage

    def at_boundary(self, change: Callable[[], float | None]) -> Latch:
        """Make a change of the group between two steps: ``change`` makes it and returns how long training pauses, or
        None where it is to be asked again later. The latch opens after the pause."""
        latch = Latch()
        self._changes.append((change, latch))
        self.go_on()
        return latch

    def lose(self, gang_id: str, pause: Callable[[], float]) -> None:
        """A member is lost: the others form anew, which takes ``pause``, and do a step that was under way again."""
        del self.members[gang_id]
        if self._computing:
            self._step += 1
            self._busy = self._computing = False
            self._broken, self._batch = self._batch, None
            self._broken_s += self._clock.now_s - self._work_began_s
            self._wait_began_s, self._paused_s = self._clock.now_s, 0.0
            self._note_stage()
        self.at_boundary(pause)

    def go_on(self) -> None:
        """Begin what can begin: a change that waits, or a step."""
        if self._busy:
            return
        for _ in range(len(self._changes)):
            change, latch = self._changes.popleft()
            pause_s = change()
            if pause_s is None:
                self._changes.append((change, latch))
                continue
            self._busy = True
            self._paused_s += pause_s
            self._clock.after(pause_s, partial(self._changed, latch))
            return
        if self._batch is not None:
            self._finish_step()
            return
        if self._broken is not None:
            again, self._broken = self._broken, None
            self._begin_step(again)
            return
        if not self.waiting:
            self.waiting = True
            self._note_stage()
        if not self.members or len(self._generation.buffer) < self._scenario.prompts_per_step:
            return
        batch = self._generation.buffer.take(self._journal.num_steps)
        if batch is not None:
            self.waiting = False
            self._begin_step(batch)

    def close(self) -> None:
        """The run is over: of the step under way, the part that is done counts."""
        if self._batch is not None:
            done = (self._clock.now_s - self._work_began_s) / self._work_s if self._computing else 1.0
            self._count(self._batch, done)
            if self._computing:
                self._journal.train_s += done * self._work_s * len(self.members)
        if self.waiting:
            self._journal.wait_s += max(0.0, self._clock.now_s - self._wait_began_s - self._paused_s)

    def _changed(self, latch: Latch) -> None:
        self._busy = False
        latch.open()
        self.go_on()

    def _begin_step(self, batch: list[Scored]) -> None:
        now_s = self._clock.now_s
        num_tokens = sum(scored.group.num_trained_tokens for scored in batch)
        self._journal.wait_s += max(0.0, now_s - self._wait_began_s - self._paused_s)
        self._batch, self._busy, self._computing = batch, True, True
        self._work_began_s, self._num_tokens = now_s, num_tokens
        if self._journal.first_step_s is None:
            self._journal.first_step_s = now_s
        self._gang_ids, self._types = tuple(self.members), tuple(self.members.values())
        self._work_s = self._scenario.costs.train_step_s(self._types, num_tokens)
        self._work_s += self._scenario.overheads.step_s
        self._step += 1
        self._clock.after(self._work_s, partial(self._stepped, self._step))
        self._note_stage()

    def _stepped(self, step: int) -> None:
        if step != self._step:
            return
        self._busy, self._computing = False, False
        self._note_stage()
        self._journal.train_s += self._work_s * len(self.members)
        self.go_on()

    def _note_stage(self) -> None:
        latch, self._next_stage = self._next_stage, Latch()
        latch.open()

    def _finish_step(self) -> None:
        """Changes of the group that waited are made: copy the weights, and let the batch go."""
        snapshot_s = max(self._scenario.costs.snapshot_s(type_name) for type_name in self.members.values())
        self._busy = True
        self._clock.after(snapshot_s, partial(self._commit, snapshot_s))

    def _commit(self, snapshot_s: float) -> None:
        batch, now_s = self._batch, self._clock.now_s
        assert batch is not None
        self._generation.buffer.commit(time_s=now_s)
        version = self._journal.num_steps
        for scored in batch:
            self._journal.staleness[version - scored.oldest_version] += 1
        self._count(batch, 1.0)
        self._journal.num_steps += 1
        self._journal.step_ends_s.append(now_s)
        self._journal.note(
            StepDone(
                end_s=now_s,
                types=self._types,
                wait_s=max(0.0, self._work_began_s - self._wait_began_s - self._paused_s),
                weights_s=snapshot_s,
                work_s=self._work_s,
                num_groups=len(batch),
                num_tokens=sum(scored.group.num_trained_tokens for scored in batch),
            )
        )
        self._spend(batch, snapshot_s)
        self._batch, self._busy = None, False
        self._wait_began_s, self._paused_s = now_s, 0.0
        self._since_s, self._broken_s = now_s, 0.0
        self._generation.policy_version = self._journal.num_steps
        self._publish(self._journal.num_steps)
        if self._journal.num_steps == self._scenario.num_steps:
            self._clock.stop()
            return
        self._generation.admit()
        self.go_on()

    def _spend(self, batch: list[Scored], snapshot_s: float) -> None:
        """Tell what the gangs' time went into, up to the end of the step."""
        for gang_id in self._generation.replicas:
            self._generation.tell(gang_id)
        self._journal.spending.note_step(
            SimulatedStep(
                number=self._journal.num_steps,
                since_s=self._since_s,
                change_s=self._paused_s,
                broken_s=self._broken_s,
                work_s=self._work_s,
                snapshot_s=snapshot_s,
                gang_ids=self._gang_ids,
                num_groups=len(batch),
                num_trained_tokens=sum(scored.group.num_trained_tokens for scored in batch),
                num_generated_tokens=sum(scored.group.num_tokens for scored in batch),
            )
        )

    def _count(self, batch: list[Scored], share: float) -> None:
        self._journal.num_trained_groups += share * len(batch)
        self._journal.num_trained_tokens += share * sum(scored.group.num_trained_tokens for scored in batch)
