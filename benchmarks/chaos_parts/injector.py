"""Does one fault after the other to a run, each as soon as its victim is in the state that is wanted.

::

    next fault ──► wait for a slot in its state ──► do it ──► … found dead ──► new worker relied on again
                      └── it does not come: left out            (event log, looked at every few milliseconds)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil

from chaos_parts.base import LOSES, PLANTED, WRONG, Fault, Injury, Kind, State
from chaos_parts.plan import Sight, candidates, possible_moves, sight_of
from chaos_parts.run_watch import RunWatch

LOOK_S = 0.003
PATIENCE_S = 10.0
"""Longest that a state is waited for before the fault is left out."""
FRESH_S = 0.1
"""Age of ``live.json`` up to which it tells what is."""
LONGEST_S = 180.0
"""A worker that is not back by then will not come back, and neither will the run."""
SLOW_S, SLOW_STOPPED_S, SLOW_RUNNING_S = 4.0, 0.4, 0.1
FULL_BYTES = 1 << 16
"""What a trainer can still write while its disk is full."""
_TRAINING = ("train", "leaving_train", "joining_train")


class Injector:
    """One run's."""

    def __init__(
        self,
        watch: RunWatch,
        faults: Iterable[Fault],
        *,
        seed: int,
        roles: Sequence[str] = ("train", "rollout"),
        max_open: int = 2,
    ) -> None:
        """``roles`` are those of whoever may be hurt, ``max_open`` says how many at once."""
        self._watch = watch
        self._faults = faults
        self._chance = random.Random(seed)
        self._roles = roles
        self._max_open = max_open
        self._open: list[Injury] = []
        self.injuries: list[Injury] = []
        self.num_moves = 0
        """That were made."""
        self.num_left_out = 0
        """Faults whose state did not come."""

    @property
    def num_done(self) -> int:
        """Moves and faults."""
        return self.num_moves + len(self.injuries)

    def run(self, *, last_step: int, limit: int) -> None:
        """Hurt the run until it has done so many steps, or so many moves and faults are done; return when all are back.

        Raises:
            TimeoutError: a worker does not come back.
        """
        self._wait(lambda: self._watch.step >= 1, LONGEST_S)
        for fault in self._faults:
            if self._is_over(last_step) or self.num_done >= limit:
                break
            self._do(fault, last_step)
        self._wait(lambda: not self._open, LONGEST_S)

    def _do(self, fault: Fault, last_step: int) -> None:
        is_done: Callable[[], bool]
        match fault.kind:
            case Kind.MOVE:
                is_done = self._ask_for_a_move
            case Kind.KILL_SCORER:
                is_done = lambda: self._kill_scorer(fault)  # noqa: E731
            case Kind.DISK_FULL:
                is_done = lambda: self._fill_disk(fault)  # noqa: E731
            case _:
                is_done = lambda: self._hurt_one(fault)  # noqa: E731
        if fault.state is State.MOVE:
            self._wait(self._ask_for_a_move, PATIENCE_S)
        has_chance = fault.state is not State.JOINING or bool(self._open)
        if not has_chance or not self._wait(lambda: self._is_over(last_step) or is_done(), PATIENCE_S):
            self.num_left_out += 1

    def _is_over(self, last_step: int) -> bool:
        return self._watch.has_ended or self._watch.step >= last_step

    def _hurt_one(self, fault: Fault) -> bool:
        if len(self._open) >= self._max_open and fault.state is not State.JOINING:
            return False
        slots = self._watch.slots
        victims = [each for each in candidates(fault, self._sight()) if slots[each].role in self._roles]
        if not victims:
            return False
        slot_id = self._chance.choice(victims)
        process_id = slots[slot_id].process_id
        if not psutil.pid_exists(process_id):  # it was killed a moment ago, which the run's files do not tell yet
            return False
        injury = self._note_done(fault, slot_id, process_id)
        if fault.kind in (*LOSES, *WRONG):
            self._open = [each for each in self._open if each.slot_id != slot_id] + [injury]
        match fault.kind:
            case Kind.KILL:
                os.kill(injury.process_id, signal.SIGKILL)
            case Kind.STOP:
                os.kill(injury.process_id, signal.SIGSTOP)
            case Kind.SLOW:
                self._slow_down(injury)
            case _:
                assert fault.kind in PLANTED
                self._plant(injury)
        return True

    def _slow_down(self, injury: Injury) -> None:
        """Let it run a little now and then, until the run ends, and it too."""
        until_s = time.monotonic() + SLOW_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < until_s and injury.found_s is None and not self._watch.has_ended:
                os.kill(injury.process_id, signal.SIGSTOP)
                self._wait(lambda: False, SLOW_STOPPED_S)
                if injury.found_s is None:
                    os.kill(injury.process_id, signal.SIGCONT)
                self._wait(lambda: False, SLOW_RUNNING_S)

    def _plant(self, injury: Injury) -> None:
        """Have the replica do it to itself; taken back where it takes no version for a while, which then was no
        fault."""
        watch, process_id = self._watch, injury.process_id
        watch.order(process_id, str(injury.fault.kind))
        if not self._wait(lambda: watch.is_obeyed(process_id), PATIENCE_S):
            watch.take_order_back(process_id)
        if watch.is_obeyed(process_id):
            if injury.found_s is None:
                injury.done_s = time.monotonic()
            self._wait(lambda: injury.found_s is not None, PATIENCE_S)
        else:
            self._open.remove(injury)
            self.injuries.remove(injury)
            self.num_left_out += 1

    def _fill_disk(self, fault: Fault) -> bool:
        """Until a checkpoint has failed; the run must say so, and go on."""
        slots, failures = self._watch.slots, self._num_failed_checkpoints()
        limited = [slot.process_id for slot in slots.values() if slot.state in _TRAINING]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for process_id in limited:
            _limit_files(process_id, FULL_BYTES, hard)
        has_failed = self._wait(lambda: self._num_failed_checkpoints() > failures, 3 * PATIENCE_S)
        for process_id in limited:
            _limit_files(process_id, hard, hard)
        if has_failed:
            self._note_done(fault, "disk", limited[0])
        return has_failed

    def _num_failed_checkpoints(self) -> int:
        return self._watch.output.count("cannot be written")

    def _kill_scorer(self, fault: Fault) -> bool:
        scorers = self._watch.scorers()
        if not scorers:
            return False
        victim = self._chance.choice(scorers)
        self._note_done(fault, "scorer", victim.pid)
        victim.kill()
        return True

    def _ask_for_a_move(self) -> bool:
        options = possible_moves(self._sight())
        if not options:
            return False
        gang_id, role = self._chance.choice(options)
        request = {"id": uuid.uuid4().hex, "action": "move", "gang_id": gang_id, "role": role}
        path = self._watch.folder / "requests" / f"{request['id']}.request.json"
        hidden = path.with_name(f".{path.name}")
        hidden.write_text(json.dumps(request))
        hidden.replace(path)
        return True

    def _note_done(self, fault: Fault, slot_id: str, process_id: int) -> Injury:
        injury = Injury(fault=fault, slot_id=slot_id, process_id=process_id, done_s=time.monotonic())
        self.injuries.append(injury)
        return injury

    def _sight(self) -> Sight:
        watch = self._watch
        return sight_of(
            watch.slots,
            watch.live(max_age_s=FRESH_S),
            step=watch.step,
            published=watch.published,
            hurt=[injury.slot_id for injury in self._open],
        )

    def _wait(self, condition: Callable[[], bool], longest_s: float) -> bool:
        """Whether a condition came to hold while the run went on."""
        give_up_s = time.monotonic() + longest_s
        while time.monotonic() < give_up_s and not self._watch.has_ended:
            if condition():
                return True
            time.sleep(LOOK_S)
            for event in self._watch.look():
                self._note(event, time.monotonic())
            self._check_all_come_back()
        return condition()

    def _check_all_come_back(self) -> None:
        for injury in self._open:
            if time.monotonic() - injury.done_s > LONGEST_S:
                raise TimeoutError(f"{injury} is not back after {LONGEST_S:g} s:\n{self._watch.output[-3000:]}")

    def _note(self, event: Mapping[str, Any], now_s: float) -> None:
        if event["event"] == "move":
            self.num_moves += 1
        newest = next((each for each in reversed(self.injuries) if each.slot_id == event.get("slot_id")), None)
        if newest is None:
            return
        match event["event"], event.get("state"):
            case ("worker_state", "dead") | ("canary", _) if newest.found_s is None:
                newest.found_s = now_s
            case "weights", _ if newest.fault.kind is Kind.WRONG_WEIGHTS and self._is_found(newest):
                self._note_back(newest, now_s)
            case "worker_state", "healthy" if self._is_found(newest):
                self._note_back(newest, now_s)
            case "lost_work", _:
                newest.num_lost_tokens += event["num_tokens"]

    def _is_found(self, injury: Injury) -> bool:
        return injury in self._open and injury.found_s is not None

    def _note_back(self, injury: Injury, now_s: float) -> None:
        injury.back_s = now_s
        self._open.remove(injury)


def _limit_files(process_id: int, max_bytes: int, hard: int) -> None:
    try:
        resource.prlimit(process_id, resource.RLIMIT_FSIZE, (max_bytes, hard))
    except ProcessLookupError:  # it has died since
        return
