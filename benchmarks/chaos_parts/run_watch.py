"""A run that is watched: its process, and what its files say, line by line as it comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PLANTING = Path(__file__).parent / "planting"
_MARK = "RLSERVE_CHAOS_RUN"
"""Environment variable that all processes of one run inherit, by which they are found."""


@dataclass(kw_only=True)
class SlotView:
    """A slot, as the event log tells it."""

    state: str = ""
    """Of its gang."""
    role: str = ""
    """The last that it had."""
    worker_state: str = ""
    process_id: int = 0
    """Of the newest worker that came up."""
    version: int = -1
    """Of the weights, as a replica."""


class RunWatch:
    """One ``rlserve launch`` and its run folder."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        """``folder`` is that of the run, also where it is resumed; ``arguments`` are those of ``rlserve launch``."""
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._output = folder.parent / f"{folder.name}-{self._mark[:6]}.txt"
        self._orders = self._output.with_suffix(".orders")
        self._orders.mkdir(parents=True)
        self._events = folder / "events.jsonl"
        self._position = self._events.stat().st_size if self._events.exists() else 0
        self.slots: dict[str, SlotView] = {}
        self.step = 0
        self.published = -1
        """The newest version of the weights."""
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlserve", "launch", *arguments],
                cwd=ROOT,
                env=self._environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(PLANTING), os.environ.get("PYTHONPATH"))))
        chaos = {_MARK: self._mark, "RLSERVE_CHAOS_ORDERS": str(self._orders), "PYTHONPATH": path}
        return {**os.environ, "OMP_WAIT_POLICY": "passive", **chaos}

    @property
    def output(self) -> str:
        """All that the command has printed."""
        return self._output.read_text()

    @property
    def has_ended(self) -> bool:
        """Whether the command has returned."""
        return self.process.poll() is not None

    def look(self) -> list[dict[str, Any]]:
        """The events since the last look, which the slots are brought up to."""
        if not self._events.exists():
            return []
        with self._events.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        events = [json.loads(line) for line in whole.splitlines()]
        for event in events:
            self._note(event)
        return events

    def live(self, *, max_age_s: float) -> Mapping[str, Any]:
        """``live.json``, which the run replaces every second; empty where it is older."""
        path = self.folder / "live.json"
        try:
            if time.time() - path.stat().st_mtime > max_age_s:
                return {}
            found: Mapping[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        return found

    def order(self, process_id: int, what: str) -> None:
        """Tell a replica to do something to itself, once it has taken its next version."""
        self._order_of(process_id).write_text(what)

    def is_obeyed(self, process_id: int) -> bool:
        """Whether it has."""
        return self._order_of(process_id).with_suffix(".done").exists()

    def take_order_back(self, process_id: int) -> None:
        """It shall not, if it has not yet."""
        self._order_of(process_id).unlink(missing_ok=True)

    def _order_of(self, process_id: int) -> Path:
        return self._orders / str(process_id)

    def scorers(self) -> list[psutil.Process]:
        """The processes that score answers."""
        return [each for each in self.processes() if "rewards.process" in " ".join(each.cmdline())]

    def processes(self) -> list[psutil.Process]:
        """Living processes of the run: all that have inherited its mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it ended while we looked, or is another user's
                continue
        return found

    def num_left(self, timeout_s: float) -> int:
        """Processes that are left of the run after so long; returns as soon as there are none."""
        deadline = time.monotonic() + timeout_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return len(left)

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.processes():
            process.kill()
        self.process.wait()

    def _note(self, event: Mapping[str, Any]) -> None:
        slot_id = event.get("slot_id")
        slot = SlotView() if slot_id is None else self.slots.setdefault(slot_id, SlotView())
        match event["event"]:
            case "slot":
                slot.state = event["state"]
                if event["owner"] in ("train", "rollout"):
                    slot.role = event["owner"]
            case "worker":
                slot.process_id, slot.version = event["process_id"], -1
            case "worker_state":
                slot.worker_state = event["state"]
            case "weights" if slot_id is None:
                self.published = event["version"]
            case "weights":
                slot.version = event["version"]
            case "step":
                self.step = event["step"]
