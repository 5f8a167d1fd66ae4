"""How long it takes until a node that joins in mid-run is of use."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from chaos_parts.run_watch import ROOT, RunWatch

from node_parts.busy import busy_processes
from node_parts.cluster import Cluster
from node_parts.following import Events, follow

PARTS = ("noticed", "worker up", "role", "engine", "weights", "in use")
"""Each from the one before it, the first from the joining."""
WAYS = ("ray_node", "ray start")
_STEPS_BEFORE = 3
_REWARD = Path(__file__).with_name("slow_reward.py")
_SETTINGS = (
    "launch.kind=cluster",
    "pool=auto",
    "num_steps=1000000",
    "checkpoint.every_steps=0",
    "tracking=off",
    "tracking.report=false",
    "manager=static",
    f"reward.function={_REWARD}:reward",
)


@dataclass(frozen=True, kw_only=True)
class Joining:
    """A node that came; all in seconds."""

    way: str
    """What it was started by, one of ``WAYS``."""
    role: str
    """What it was given, ``rollout`` or ``train``."""
    start_s: float
    """From the command to the joining."""
    useful_s: float
    """From the joining to the first token, or to the end of the first training step."""
    parts_s: Mapping[str, float]
    """Of ``useful_s``, those of ``PARTS`` that its role has."""
    worker_processor_s: float
    """That its worker has used by then."""


def joinings(folder: Path, num_each: int, *, num_busy: int = 0) -> list[Joining]:
    """Nodes that join one run: ``num_each`` pairs in each way, beside ``num_busy`` other processes. The policy gives
    roles in turn, so a pair has both."""
    found = []
    with Cluster("cpu-a", "cpu-b") as cluster:
        place = ["name=joined", f"output_dir={folder}", f"launch.address={cluster.address}"]
        run = RunWatch(folder / "joined", [str(ROOT / "conf" / "rlhf.yaml"), *place, *_SETTINGS])
        try:
            follow(run, lambda _: run.step >= _STEPS_BEFORE, "a step before the joining")
            with busy_processes(num_busy):
                for number, way, of_pair in itertools.product(range(num_each), WAYS, "ab"):
                    found.append(_join(cluster, run, f"cpu-{way[-4:]}{number}{of_pair}", way))
        finally:
            run.end()
    return found


def _join(cluster: Cluster, run: RunWatch, slot_type: str, way: str) -> Joining:
    slot_id, begun_s = f"{slot_type}/0", time.time()
    seen: dict[str, float] = {}
    role = ""

    def is_useful(events: Events) -> bool:
        nonlocal role
        for event in events:
            if event.get("slot_id") == slot_id and str(event.get("state")).startswith("joining_"):
                role = str(event["state"]).removeprefix("joining_")
            if (part := part_of(event, slot_id)) is not None:
                seen.setdefault(part, time.time())
        return PARTS[-1] in seen

    cluster.add(slot_type, forks=way == "ray_node")
    follow(run, is_useful, f"use of {slot_id}")
    times = psutil.Process(run.slots[slot_id].process_id).cpu_times()
    joined_s = cluster.joined_at(slot_type)
    parts = [part for part in PARTS if part in seen]
    ends = [joined_s, *(seen[part] for part in parts)]
    return Joining(
        way=way,
        role=role,
        start_s=joined_s - begun_s,
        useful_s=ends[-1] - joined_s,
        parts_s={part: later - earlier for part, (earlier, later) in zip(parts, itertools.pairwise(ends), strict=True)},
        worker_processor_s=times.user + times.system,
    )


def part_of(event: Mapping[str, Any], slot_id: str) -> str | None:
    """Which part of a slot's joining ends with an event."""
    match event:
        case {"event": "step", "slot_ids": slot_ids} if slot_id in slot_ids:
            return "in use"
        case {"slot_id": owner} if owner != slot_id:
            return None
        case {"event": "slot", "state": "starting"}:
            return "noticed"
        case {"event": "worker"}:
            return "worker up"
        case {"event": "slot", "state": "joining_rollout" | "joining_train"}:
            return "role"
        case {"event": "phase", "phase": "engine_formed"}:
            return "engine"
        case {"event": "phase", "phase": "weights_taken"}:
            return "weights"
        case {"event": "phase", "phase": "first_token"}:
            return "in use"
    return None
