"""Which faults are done, and to whom: pure functions of a seed and of what a run's files say."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaos_parts.base import PLANTED, Fault, Kind, State
from chaos_parts.run_watch import SlotView

MOVING = ("leaving_train", "leaving_rollout", "joining_train", "joining_rollout", "called_to_train")
SERVING = ("rollout", "called_to_train")
_HOLDING = ("train", "leaving_train", "joining_train")
WEIGHTS: Mapping[Fault, int] = {
    Fault(kind=Kind.MOVE): 45,
    Fault(kind=Kind.KILL, state=State.IDLE): 7,
    Fault(kind=Kind.KILL, state=State.GENERATING): 9,
    Fault(kind=Kind.KILL, state=State.SYNC): 9,
    Fault(kind=Kind.KILL, state=State.MOVE): 9,
    Fault(kind=Kind.KILL, state=State.STEP): 7,
    Fault(kind=Kind.KILL, state=State.JOINING): 7,
    Fault(kind=Kind.STOP, state=State.IDLE): 1,
    Fault(kind=Kind.STOP, state=State.GENERATING): 1,
    Fault(kind=Kind.STOP, state=State.SYNC): 1,
    Fault(kind=Kind.STOP, state=State.MOVE): 1,
    Fault(kind=Kind.STOP, state=State.STEP): 1,
    Fault(kind=Kind.STOP, state=State.JOINING): 1,
    Fault(kind=Kind.SLOW): 1,
    Fault(kind=Kind.NO_MEMORY): 1,
    Fault(kind=Kind.WRONG_WEIGHTS): 2,
    Fault(kind=Kind.WRONG_REPLICA): 1,
    Fault(kind=Kind.DISK_FULL): 1,
    Fault(kind=Kind.KILL_SCORER): 1,
}
"""How often each is done, of a hundred or so."""


def mixture(seed: int) -> Iterator[Fault]:
    """Faults without end, the same for the same seed: each of the kinds once, in some order, then by their weights."""
    chance = random.Random(seed)
    faults = list(WEIGHTS)
    yield from chance.sample(faults, len(faults))
    while True:
        yield from chance.choices(faults, list(WEIGHTS.values()))


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What can be seen of a run at one moment."""

    slots: Mapping[str, SlotView]
    num_running: Mapping[str, int]
    """Samples in the batch of each replica, where that was told just now."""
    trainer_steps: bool
    """The trainers were said to compute just now."""
    sends: bool
    """A step was done, and its weights are not published yet."""
    published: int
    """The newest version of the weights."""
    hurt: Sequence[str]
    """Slots that are not yet back from a fault."""


def candidates(fault: Fault, sight: Sight) -> list[str]:
    """The slots that a fault may be done to now, such that the run can go on: whoever holds its state has another
    beside it that does, and somebody is left who rolls out."""
    found = [slot_id for slot_id in sight.slots if _is_in(fault.state, slot_id, sight)]
    if fault.kind in PLANTED:
        found = [slot_id for slot_id in found if sight.slots[slot_id].state in SERVING]
    return sorted(slot_id for slot_id in found if _may_be_hurt(slot_id, fault, sight))


def possible_moves(sight: Sight) -> list[tuple[str, str]]:
    """Gangs of one slot, whose role another has too, with the other role."""
    well = {slot_id: slot.state for slot_id, slot in sight.slots.items() if slot_id not in sight.hurt}
    train = [slot_id for slot_id, state in well.items() if state == "train"]
    rollout = [slot_id for slot_id, state in well.items() if state in SERVING]
    found = [(slot_id, "rollout") for slot_id in train if len(train) > 1]
    return sorted(found + [(slot_id, "train") for slot_id in rollout if len(rollout) > 1])


def sight_of(
    slots: Mapping[str, SlotView], live: Mapping[str, Any], *, step: int, published: int, hurt: Sequence[str]
) -> Sight:
    """From what the files say; ``live`` is empty where it is old."""
    gangs = live.get("gangs", ())
    return Sight(
        slots=slots,
        num_running={gang["id"]: gang["num_running"] for gang in gangs if gang["num_running"] is not None},
        trainer_steps=live.get("status") == "training" and not live.get("trainer_waiting", True),
        sends=0 <= published < step,
        published=published,
        hurt=hurt,
    )


def _is_in(state: State, slot_id: str, sight: Sight) -> bool:
    slot, is_hurt = sight.slots[slot_id], slot_id in sight.hurt
    match state:
        case State.JOINING:
            return is_hurt and slot.state.startswith("joining")
        case _ if is_hurt:
            return False
        case State.IDLE:
            return slot.state in SERVING and sight.num_running.get(slot_id) == 0
        case State.GENERATING:
            return slot.state in SERVING and sight.num_running.get(slot_id, 0) > 0
        case State.SYNC:
            return (slot.state == "train" and sight.sends) or (slot.state in SERVING and slot.version < sight.published)
        case State.MOVE:
            return slot.state in MOVING
        case State.STEP:
            return slot.state == "train" and sight.trainer_steps
        case State.ANY:
            return slot.state in ("train", *SERVING)


def _may_be_hurt(slot_id: str, fault: Fault, sight: Sight) -> bool:
    """Two that hold the same part of the state may be hurt together only where a third is there."""
    slots, others = sight.slots, [each for each in sight.slots if each != slot_id]
    well = [each for each in others if each not in sight.hurt]
    if slots[slot_id].state in _HOLDING:
        if any(slots[each].role == "train" or slots[each].state in _HOLDING for each in set(others) & set(sight.hurt)):
            return False
        return any(slots[each].state == "train" for each in well)
    return fault.kind is Kind.KILL or any(slots[each].state in SERVING for each in well)
