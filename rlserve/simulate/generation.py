"""The rollout side: prompt groups are admitted, given to replicas, scored, and kept or dropped.

The ledger and the buffer are those of a real run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rlserve.manager.measurement.readings import GroupDone, ReplicaPolled
from rlserve.rollout.admission import PromptAdmission
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.ledger import GroupState, Ledger
from rlserve.simulate.clock import Clock
from rlserve.simulate.decode_curve import DecodeCurve
from rlserve.simulate.dispatch import Dispatcher
from rlserve.simulate.journal import Journal
from rlserve.simulate.replica import Replica
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.work import Group, Sample, Scored

NOT_KEPT = "reward_left_out"


class Generation:
    """Owns groups and replicas."""

    def __init__(
        self, clock: Clock, scenario: Scenario, journal: Journal, *, seed: int, on_ready: Callable[[], None]
    ) -> None:
        """``on_ready`` is told whenever the buffer or what is due has changed."""
        self.ledger = Ledger(prompts_per_step=scenario.prompts_per_step, max_staleness=scenario.max_staleness)
        self.buffer: SampleBuffer[Scored] = SampleBuffer(self.ledger, prompts_per_step=scenario.prompts_per_step)
        self._admission = PromptAdmission(self.ledger, num_groups=scenario.num_groups)
        self.dispatcher = Dispatcher()
        self.replicas: dict[str, Replica] = {}
        self.policy_version = 0
        self._clock = clock
        self._journal = journal
        self._scenario = replace(scenario, workload=scenario.workload.seeded(seed))
        self._curves: dict[str, DecodeCurve] = {}
        self._on_ready = on_ready

    @property
    def progress(self) -> float:
        """Of the run, 0 to 1."""
        if self._scenario.num_steps is not None:
            return self._journal.num_steps / self._scenario.num_steps
        return self._clock.now_s / self._scenario.duration_s

    def admit(self) -> None:
        """Let in as many groups as there is room for."""
        ledger, now_s, scenario = self.ledger, self._clock.now_s, self._scenario
        for _ in range(self._admission.room):
            position = ledger.num_admitted
            work = scenario.work(position, self.progress)
            group = Group(
                id=str(position),
                position=position,
                min_version=self.policy_version,
                work=work,
            )
            group.unfinished = [Sample(group=group, length=length) for length in work.lengths]
            ledger.admit(group.id, position=position, current_version=self.policy_version, time_s=now_s)
            self.dispatcher.submit(group)
        self.dispatch()

    def dispatch(self) -> None:
        """Give waiting groups to replicas with room."""
        for gang_id, group in self.dispatcher.assign():
            self.ledger.start(group.id, version=self.replicas[gang_id].version, time_s=self._clock.now_s)
            group.arrive()
            self.replicas[gang_id].add(group)

    def join(self, gang_id: str, type_name: str, version: int) -> None:
        """A replica with weights of ``version`` begins to serve."""
        costs = self._scenario.costs
        if type_name not in self._curves:
            self._curves[type_name] = DecodeCurve(costs, type_name)
        self.replicas[gang_id] = Replica(
            self._clock,
            gang_id=gang_id,
            type_name=type_name,
            costs=costs,
            curve=self._curves[type_name],
            max_num_sequences=self._scenario.max_num_sequences,
            version=version,
            on_done=self._note_done,
        )
        self.dispatcher.join(gang_id, version=version, capacity=self._scenario.max_num_sequences)
        self.dispatch()

    def leave(self, gang_id: str, *, lost: bool = False) -> None:
        """A replica serves no more; its groups wait again, with their tokens, or without if it was lost."""
        self.dispatcher.close(gang_id)
        replica, spending = self.replicas.pop(gang_id), self._journal.spending
        replica.leave(lost=lost)
        spending.note_replica(replica)
        spending.note_left(replica)
        self._retire(replica)
        for group in self.dispatcher.left(gang_id):
            if lost:
                spending.note_lost(gang_id, group.num_made)
                group.take_back()
            elif group.oldest_version >= 0:
                group.min_version = max(group.min_version, replica.version)
            group.attempt += 1
            self.ledger.requeue(group.id, time_s=self._clock.now_s)
            self.dispatcher.submit(group)
        self.dispatch()

    def set_version(self, replica: Replica, version: int) -> None:
        """A replica serves newer weights."""
        replica.version = version
        self.dispatcher.set_version(replica.gang_id, version)
        self.dispatch()

    def tell(self, gang_id: str) -> None:
        """Tell what the replica of a gang has done, if it is one."""
        replica = self.replicas.get(gang_id)
        if replica is not None:
            replica.advance()
            self._journal.spending.note_replica(replica)

    def poll(self) -> None:
        """Tell the meter how all replicas do."""
        now_s = self._clock.now_s
        for replica in self.replicas.values():
            replica.advance()
            self._journal.note(
                ReplicaPolled(
                    time_s=now_s,
                    gang_id=replica.gang_id,
                    type=replica.type_name,
                    since_s=replica.since_s,
                    num_running=replica.num_running,
                    num_waiting=replica.num_waiting,
                    kv_cache_usage=replica.kv_cache_usage,
                    num_generated_tokens=int(replica.num_generated),
                    busy_s=replica.busy_s,
                    running_s=replica.running_s,
                )
            )

    def close(self) -> None:
        """The run is over."""
        for gang_id, replica in self.replicas.items():
            self.tell(gang_id)
            self._retire(replica)

    def check_integrity(self) -> None:
        """Assert that every admitted group is in one place, or has ended."""
        self.ledger.check_integrity()
        self.buffer.check_integrity()
        assert self.ledger.count(GroupState.PENDING) == self.dispatcher.num_waiting

    def _retire(self, replica: Replica) -> None:
        self._journal.generate_s += replica.busy_s
        self._journal.num_generated_tokens += replica.num_generated

    def _note_done(self, replica: Replica, group: Group) -> None:
        self.dispatcher.finished(replica.gang_id, group)
        delay_s = self._scenario.scoring_s + self._scenario.workload.group_tool_wait_s(group.position)
        if delay_s:
            self._clock.after(delay_s, partial(self._score, group))
        else:
            self._score(group)
        self.dispatch()

    def _score(self, group: Group) -> None:
        now_s = self._clock.now_s
        kept = self._scenario.workload.keeps(group.position, self.progress)
        self._journal.note(GroupDone(time_s=now_s, kept=kept, num_tokens=group.num_tokens))
        self._admission.note(kept=kept)
        if kept:
            self.ledger.score(group.id, time_s=now_s)
            self.buffer.put(Scored(group=group, oldest_version=group.oldest_version), time_s=now_s)
        else:
            self._journal.spending.note_dropped(group.num_tokens)
            self.ledger.drop(group.id, reason=NOT_KEPT, time_s=now_s)
            self.admit()
        self._on_ready()
