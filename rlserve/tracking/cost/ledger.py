"""The ledger: owner of what every moment of every slot was used for.

::

    SlotEvent ─────▶ a slot is somebody else's: what it did without a role is booked at once
    StepEvent ─────▶ the trainers' time up to the end of the step: waits, computing, copies
    ReplicaEvent ──▶ a replica's time up to then: computing is open, waiting is booked
    TokensEvent ───▶ open time is booked: what became of the tokens
    RunEvent ──────▶ taken up again: steps after the checkpoint are taken back, and are lost

Slots of a run are counted from when its command began, those that join later from when they do; until they are gone,
the run's records are closed, or the last of them was written by a process that was killed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rlserve.tracking.cost.accounts import Account, Accounts, to_ns
from rlserve.tracking.cost.open_work import Fate, OpenWork
from rlserve.tracking.cost.slot_time import SlotTime, Span
from rlserve.tracking.cost.stages import WAITING, Stages
from rlserve.tracking.cost.statement import Statement, StepCost
from rlserve.tracking.cost.uses import Use
from rlserve.tracking.events import (
    EndEvent,
    Event,
    LostWorkEvent,
    ReplicaEvent,
    RunEvent,
    SlotEvent,
    StageEvent,
    StepEvent,
    TokensEvent,
    WeightEvent,
    WorkerEvent,
)
from rlserve.tracking.share_event import ShareEvent


@dataclass(frozen=True)
class _Step:
    """A step's own times."""

    number: int
    begin_ns: int
    work_begin_ns: int
    work_end_ns: int
    end_ns: int
    weights_wait_ns: int
    change_wait_ns: int
    broken_ns: int
    state_copy_ns: int

    @classmethod
    def of(cls, event: StepEvent) -> _Step:
        """As its event tells them, in order."""
        begin_ns = to_ns(event.begin_s)
        work_begin_ns = max(to_ns(event.work_begin_s), begin_ns)
        work_end_ns = max(to_ns(event.work_end_s), work_begin_ns)
        return cls(
            number=event.step,
            begin_ns=begin_ns,
            work_begin_ns=work_begin_ns,
            work_end_ns=work_end_ns,
            end_ns=max(to_ns(event.time_s), work_end_ns),
            weights_wait_ns=to_ns(event.weights_wait_s),
            change_wait_ns=to_ns(event.change_wait_s),
            broken_ns=to_ns(event.broken_s),
            state_copy_ns=to_ns(event.state_copy_s),
        )


class CostLedger:
    """Takes the events of a run as they come, and says at any moment what its time went into."""

    def __init__(self) -> None:
        self._accounts = Accounts()
        self._owned_ns: Counter[Account] = Counter()
        """Without what slots are owned now."""
        self._slots: dict[str, SlotTime] = {}
        self._gangs: defaultdict[str, list[SlotTime]] = defaultdict(list)
        self._changed_ns: dict[str, int] = {}
        """When each slot came to its owner."""
        self._pauses_ns: Counter[str] = Counter()
        """For weights, by gang, since its replica told what it did."""
        self._open = OpenWork()
        self._stages = Stages(0)
        self._session_begin_ns = 0
        self._is_up = False
        """A worker of this session is up: slots that come now come late."""
        self._last_ns = 0
        self._steps: dict[int, StepCost] = {}
        self._num_trained_tokens = 0
        """Of those steps."""
        self._num_generated_tokens = 0

    @property
    def steps(self) -> tuple[StepCost, ...]:
        """Of the training steps that the run is built on, in order."""
        return tuple(self._steps.values())

    def note(self, event: Event) -> None:
        """Something happened."""
        now_ns = max(to_ns(event.time_s), self._last_ns)
        match event:
            case RunEvent():
                self._begin(event)
            case SlotEvent():
                self._note_slot(event, now_ns)
            case ShareEvent() if not self._is_up and not self._slots:
                self._session_begin_ns = now_ns  # until then others had the slots that it begins with
            case WorkerEvent():
                self._is_up = True
            case StageEvent():
                self._stages.enter(event.stage, now_ns)
            case StepEvent():
                self._note_step(_Step.of(event), event)
            case ReplicaEvent():
                self._note_replica(event)
            case WeightEvent(slot_id=str(slot_id)) if slot_id in self._slots:
                self._pauses_ns[self._slots[slot_id].gang_id] += to_ns(event.pause_s)
            case LostWorkEvent():
                self._settle(self._open.decide(Use.LOST, event.num_tokens))
            case TokensEvent():
                self._settle(self._open.decide(Use.ROLLOUT, event.num_trained, event.step))
                self._settle(self._open.decide(Use.DROPPED, event.num_dropped))
                self._settle(self._open.decide(Use.EVALUATION, event.num_held_out))
                self._settle(self._open.decide(Use.CLIENTS, event.num_clients))
            case EndEvent():
                self.close(event.time_s, has_finished=event.exit_code == 0)
        self._last_ns = max(now_ns, self._last_ns)

    def statement(self, now_s: float) -> Statement:
        """What all time until now went into. What nothing has told of yet is in flight."""
        now_ns = max(to_ns(now_s), self._last_ns)
        spent_ns = {account: Counter(uses) for account, uses in self._accounts.spent_ns.items()}
        owned_ns = Counter(self._owned_ns)
        for account, use, duration_ns in self._unbooked(now_ns):
            spent_ns.setdefault(account, Counter())[use] += duration_ns
        for slot_id, slot in self._slots.items():
            owned_ns[slot.account] += now_ns - self._changed_ns[slot_id]
        return Statement(
            owned_ns=owned_ns,
            spent_ns=spent_ns,
            num_steps=len(self._steps),
            num_trained_tokens=self._num_trained_tokens,
            num_generated_tokens=self._num_generated_tokens,
        )

    def close(self, time_s: float, *, has_finished: bool) -> None:
        """The process that ran the run has ended, and its slots are its no more. Where it has not finished, what was
        under way is lost."""
        now_ns = max(to_ns(time_s), self._last_ns)
        for slot_id in list(self._slots):
            self._let_go(slot_id, now_ns, is_lost=not has_finished)
        self._settle(self._open.decide_rest(Use.SURPLUS if has_finished else Use.LOST))

    def _begin(self, event: RunEvent) -> None:
        self.close(self._last_ns / 1e9, has_finished=False)
        if event.resumed:
            self._accounts.undo(event.step)
            self._steps = {step: cost for step, cost in self._steps.items() if step <= event.step}
            self._num_trained_tokens = sum(cost.num_trained_tokens for cost in self._steps.values())
        self._session_begin_ns = max(to_ns(event.begin_s), self._last_ns)
        self._stages = Stages(self._session_begin_ns)
        self._is_up = False

    # -- slots -----------------------------------------------------------------------------------------------

    def _note_slot(self, event: SlotEvent, now_ns: int) -> None:
        slot = self._slots.get(event.slot_id)
        if slot is not None:
            self._leave_owner(slot, now_ns, is_lost=event.owner == "dead")
            self._owned_ns[slot.account] += now_ns - self._changed_ns[event.slot_id]
            slot.change(event.owner, event.state, now_ns)
            self._changed_ns[event.slot_id] = now_ns
            if event.owner == "gone":
                self._let_go(event.slot_id, now_ns, is_lost=True)
        elif event.owner != "gone":
            begin_ns = now_ns if self._is_up else self._session_begin_ns
            slot = SlotTime(
                slot_type=event.slot_type,
                gang_id=event.gang_id,
                owner="moving",
                state="starting",
                since_ns=begin_ns,
            )
            self._slots[event.slot_id] = slot
            self._gangs[event.gang_id].append(slot)
            self._changed_ns[event.slot_id] = begin_ns
            if (event.owner, event.state) != ("moving", "starting"):
                self._note_slot(event, now_ns)

    def _leave_owner(self, slot: SlotTime, now_ns: int, *, is_lost: bool) -> None:
        """What a slot did for its owner is over."""
        begin_ns, account = slot.since_ns, slot.account
        slot.since_ns = max(now_ns, begin_ns)
        if slot.owner == "train" and now_ns > begin_ns:
            slot.trained.append(Span(begin_ns, now_ns, is_lost))
        elif slot.owner == "rollout":
            self._pauses_ns.pop(slot.gang_id, None)
            if is_lost:
                self._accounts.book(account, Use.LOST, now_ns - begin_ns)
            else:
                self._wait(account, begin_ns, now_ns)
        elif not slot.has_role:
            self._accounts.book(account, slot.use_without_role(), now_ns - begin_ns)

    def _let_go(self, slot_id: str, now_ns: int, *, is_lost: bool) -> None:
        """The run does not have a slot any more. What nothing has told of came to nothing where it ``is_lost``."""
        slot = self._slots.pop(slot_id)
        self._gangs[slot.gang_id].remove(slot)
        if slot.owner == "rollout":
            self._wait(slot.account, slot.since_ns, now_ns, in_training=Use.LOST if is_lost else Use.BUBBLE)
            slot.since_ns = now_ns
        self._leave_owner(slot, now_ns, is_lost=False)
        for span in slot.trained:
            account = Account(slot.slot_type, "train")
            self._wait(account, span.begin_ns, span.end_ns, in_training=Use.LOST if is_lost else Use.IDLE)
        self._owned_ns[slot.account] += now_ns - self._changed_ns.pop(slot_id)

    # -- training --------------------------------------------------------------------------------------------

    def _note_step(self, step: _Step, event: StepEvent) -> None:
        members = set(event.slot_ids)
        for slot_id, slot in self._slots.items():
            spans, slot.trained = slot.trained, []
            if slot.owner == "train" and step.end_ns > slot.since_ns:
                spans.append(Span(slot.since_ns, step.end_ns))
                slot.since_ns = step.end_ns
            for span in spans:
                self._explain_training(Account(slot.slot_type, "train"), span, step, is_member=slot_id in members)
        self._num_trained_tokens += event.num_tokens
        self._steps[step.number] = StepCost(
            step=step.number,
            owned_ns=self._owned_by_type(step.end_ns),
            num_trained_tokens=event.num_tokens,
        )

    def _explain_training(self, account: Account, span: Span, step: _Step, *, is_member: bool) -> None:
        """A part of a trainer's time, up to the end of a step: before it, waiting, computing, copying."""
        book = self._accounts.book
        if span.is_lost and not is_member:
            book(account, Use.LOST, span.end_ns - span.begin_ns)
            return
        self._wait(account, span.begin_ns, min(span.end_ns, step.begin_ns), in_training=Use.IDLE)
        waited_ns = _overlap_ns(span, step.begin_ns, step.work_begin_ns)
        weights_ns = min(waited_ns, step.weights_wait_ns)
        change_ns = min(waited_ns - weights_ns, step.change_wait_ns)
        book(account, Use.WEIGHT_SYNC, weights_ns)
        book(account, Use.SWITCHING, change_ns)
        book(account, Use.BUBBLE, waited_ns - weights_ns - change_ns)
        worked_ns = _overlap_ns(span, step.work_begin_ns, step.work_end_ns)
        if is_member:
            broken_ns = min(worked_ns, step.broken_ns)
            book(account, Use.LOST, broken_ns)
            self._accounts.credit(step.number, account, Use.TRAINING, worked_ns - broken_ns)
        else:
            book(account, Use.SWITCHING, worked_ns)
        copied_ns = _overlap_ns(span, step.work_end_ns, step.end_ns)
        state_ns = min(copied_ns, step.state_copy_ns)
        book(account, Use.CHECKPOINT, state_ns)
        book(account, Use.WEIGHT_SYNC, copied_ns - state_ns)
        after_ns = span.end_ns - max(span.begin_ns, step.end_ns)
        if after_ns > 0:  # it left when the step was done, before that was told
            book(account, Use.SWITCHING, after_ns)

    # -- rollout ---------------------------------------------------------------------------------------------

    def _note_replica(self, event: ReplicaEvent) -> None:
        self._num_generated_tokens += event.num_tokens
        leader = self._slots.get(event.slot_id)
        if leader is None:
            return
        num_tokens = event.num_tokens
        pause_ns = self._pauses_ns.pop(leader.gang_id, 0)
        for slot in self._gangs[leader.gang_id]:
            busy_ns = self._explain_rollout(slot, event, pause_ns) if slot.owner == "rollout" else 0
            again_ns = min(busy_ns, to_ns(event.recompute_s))
            account = Account(slot.slot_type, "rollout")
            self._accounts.book(account, Use.RECOMPUTE, again_ns)
            self._settle(self._open.add(account, busy_ns - again_ns, num_tokens))
            num_tokens = 0

    def _explain_rollout(self, slot: SlotTime, event: ReplicaEvent, pause_ns: int) -> int:
        """A replica's time, up to what it has told of; returns how long it has computed."""
        end_ns = to_ns(event.time_s)
        begin_ns = min(max(slot.since_ns, to_ns(event.begin_s)), max(end_ns, slot.since_ns))
        self._wait(slot.account, slot.since_ns, begin_ns)
        length_ns = max(end_ns - begin_ns, 0)
        busy_ns = min(length_ns, to_ns(event.busy_s))
        pause_ns = min(length_ns - busy_ns, pause_ns)
        self._accounts.book(slot.account, Use.WEIGHT_SYNC, pause_ns)
        left_ns, left_of_ns = length_ns - busy_ns - pause_ns, length_ns
        for stage, duration_ns in self._stages.within(begin_ns, end_ns):
            part_ns = left_ns * duration_ns // left_of_ns
            self._accounts.book(slot.account, WAITING[stage], part_ns)
            left_ns, left_of_ns = left_ns - part_ns, left_of_ns - duration_ns
        slot.since_ns = begin_ns + length_ns
        return busy_ns

    def _wait(self, account: Account, begin_ns: int, end_ns: int, *, in_training: Use = Use.BUBBLE) -> None:
        """A slot with a role had nothing to do, or nothing has told what it did."""
        for stage, duration_ns in self._stages.within(begin_ns, end_ns):
            self._accounts.book(account, in_training if stage == "training" else WAITING[stage], duration_ns)

    def _settle(self, fates: Iterable[Fate]) -> None:
        for fate in fates:
            if fate.step is None:
                self._accounts.book(fate.account, fate.use, fate.duration_ns)
            else:
                self._accounts.credit(fate.step, fate.account, fate.use, fate.duration_ns)

    # -- sums ------------------------------------------------------------------------------------------------

    def _unbooked(self, now_ns: int) -> Iterator[tuple[Account, Use, int]]:
        """What is not in the accounts yet."""
        for account, duration_ns in self._open.time_ns.items():
            yield account, Use.IN_FLIGHT, duration_ns
        for slot in self._slots.values():
            use = Use.IN_FLIGHT if slot.has_role else slot.use_without_role()
            yield slot.account, use, max(now_ns - slot.since_ns, 0)
            for span in slot.trained:
                yield Account(slot.slot_type, "train"), Use.IN_FLIGHT, span.end_ns - span.begin_ns

    def _owned_by_type(self, now_ns: int) -> Mapping[str, int]:
        """All until then."""
        owned_ns: Counter[str] = Counter()
        for account, duration_ns in self._owned_ns.items():
            owned_ns[account.slot_type] += duration_ns
        for slot_id, slot in self._slots.items():
            owned_ns[slot.slot_type] += max(now_ns - self._changed_ns[slot_id], 0)
        return owned_ns


def _overlap_ns(span: Span, begin_ns: int, end_ns: int) -> int:
    return max(min(span.end_ns, end_ns) - max(span.begin_ns, begin_ns), 0)
