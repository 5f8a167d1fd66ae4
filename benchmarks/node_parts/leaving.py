"""How long it takes to empty a busy slot that got a notice, however it got it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos_parts.run_watch import ROOT, RunWatch
from chaos_parts.verdict import judge
from move_times import num_tokens_made_twice

from node_parts.cluster import wait_for
from node_parts.following import Events, follow
from rlserve.tracking.jsonl import read_json_lines

GRACE_S = 30
_NUM_SLOTS = 6
_STEPS_BEFORE = 5


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """A slot that got a notice."""

    way: str
    role: str
    emptied_s: float
    """From the notice until the slot is gone."""


@dataclass(frozen=True, kw_only=True)
class Leavings:
    """A run that lost all but two slots to notices."""

    leavings: list[Leaving]
    num_lost_tokens: int
    """Generated, and generated again."""
    num_moved: int
    """Prompt groups that went on elsewhere."""
    num_lost: int
    """Prompt groups or steps."""


def leavings(folder: Path) -> Leavings:
    """A notice of ``GRACE_S`` to busy slots of both roles, each by a line in the file and by a signal to the worker."""
    place = ["name=left", f"output_dir={folder}", "num_steps=120", f"pool.slots=[{{type: cpu, count: {_NUM_SLOTS}}}]"]
    settings = ["data.num_held_out=1"]  # its answer is kept, so every token is accounted for
    settings += ["checkpoint.every_steps=0", "tracking=off", "tracking.report=false", "manager=static"]
    settings.append(f"pool.notice_grace_s={GRACE_S}")  # a signal does not say
    run = RunWatch(folder / "left", [str(ROOT / "conf" / "rlhf.yaml"), *place, *settings])
    found = []

    def by_file(slot_id: str) -> None:
        with (run.folder / "notices").open("a") as file:
            file.write(f"{slot_id} {GRACE_S}\n")

    def by_signal(slot_id: str) -> None:
        os.kill(run.slots[slot_id].process_id, signal.SIGTERM)

    ways: dict[str, Callable[[str], None]] = {"a line in the file": by_file, "a signal": by_signal}
    try:
        for role in ("rollout", "train"):
            for way, give in ways.items():
                found.append(_leave(run, way, role, give))
        wait_for(lambda: run.has_ended, "end of the run")
    finally:
        run.end()
    names = ("metrics.jsonl", "samples.jsonl", "answers.jsonl")
    metrics, samples, answers = (read_json_lines(run.folder / name) for name in names)
    return Leavings(
        leavings=found,
        num_lost_tokens=num_tokens_made_twice(metrics, samples, answers),
        num_moved=sum(sum(line["attempts"]) for line in samples),
        num_lost=judge(run.folder).num_lost,
    )


def _leave(run: RunWatch, way: str, role: str, give: Callable[[str], None]) -> Leaving:
    until = run.step + _STEPS_BEFORE
    follow(run, lambda _: run.step >= until, "the step before a notice")
    slot_id = _busy(run, role)
    begun_s = time.monotonic()
    give(slot_id)
    follow(run, lambda _: run.slots[slot_id].state == "gone", "an emptied slot")
    return Leaving(way=way, role=role, emptied_s=time.monotonic() - begun_s)


def _busy(run: RunWatch, role: str) -> str:
    """A slot that is in the middle of its work."""
    busy: list[str] = []

    def is_found(events: Events) -> bool:
        for event in events:
            is_running = event["event"] == "replica" and event["running_s"] > event["time_s"] - event["begin_s"]
            if role == "rollout" and is_running:
                busy.append(str(event["slot_id"]))
            elif role == "train" and event["event"] == "step":
                busy.append(str(event["slot_ids"][-1]))
        busy[:] = [slot_id for slot_id in busy if run.slots[slot_id].state == role]
        return bool(busy)

    follow(run, is_found, f"a busy slot of {role}")
    return busy[-1]
