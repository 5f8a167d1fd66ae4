"""Runs of the command line as real processes, watched through the files that they write."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from torch import Tensor

from rlserve.trainers.backends.pytorch.state_files import StateFiles
from rlserve.trainers.elastic.intervals import Interval

_POLL_S = 0.05
DEADLINE_S = 150.0
"""Of anything that is waited for: far above what it takes, so that only a hang reaches it."""
_MARK = "RLSERVE_TEST_RUN"
"""Environment variable that all processes of one run inherit, by which they are found."""

SMALL: Mapping[str, Any] = {
    "num_steps": 3,
    "rollout": {
        "prompts_per_step": 4,
        "samples_per_prompt": 2,
        "max_tokens": 16,
        "engine": {"dtype": "float32", "num_blocks": 256},
    },
    "trainer": {"learning_rate": 1.0e-3, "timeout_s": 8.0},
    "pool": {
        "slots": [{"type": "cpu-a", "count": 1, "prefer": "train"}, {"type": "cpu-b", "count": 1, "prefer": "rollout"}],
        "health_timeout_s": 8.0,
        "switch_timeout_s": 40.0,
    },
    "manager": {"policy": "static"},
    "tracking": {"wandb": {"enabled": False}, "tensorboard": False, "report": False, "progress": "plain"},
    "launch": {"kind": "local"},
}
REWARD = """
import time
from pathlib import Path

HELD = Path(__file__).with_name("held")


def reward(sample):
    while HELD.exists():
        time.sleep(0.02)
    num_kinds = len(set(sample.response))
    return {"score": num_kinds / 10, "num_kinds": num_kinds}
"""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, level by level."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def saved_state(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of the trainer's state, of however many ranks."""
    files = StateFiles(checkpoint / "trainer")
    return {
        name: files.read(name, Interval(0, tensor.shape.numel())).view(tensor.shape)
        for name, tensor in files.tensors.items()
    }


class Run:
    """One ``rlserve`` process and its run folder."""

    def __init__(self, place: Path, arguments: Sequence[str], name: str, environment: Mapping[str, str]) -> None:
        self.folder = place / "runs" / name
        self._mark = f"{place}/{name}/{time.monotonic_ns()}"
        self.output_file = place / f"output-{time.monotonic_ns()}.txt"
        with self.output_file.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlserve", "launch", *arguments],
                cwd=place,
                env={**os.environ, "OMP_NUM_THREADS": "1", _MARK: self._mark, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All that the process printed so far."""
        return self.output_file.read_text()

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSONL file of the run so far; none if there is no file yet."""
        path = self.folder / name
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind so far."""
        return [event for event in self.lines("events.jsonl") if event["event"] == kind]

    def num_steps(self) -> int:
        """Steps trained so far."""
        return len(self.lines("samples.jsonl"))

    def worker(self, slot_id: str) -> int:
        """Process of the newest worker on a slot."""
        return int([event["process_id"] for event in self.events("worker") if event["slot_id"] == slot_id][-1])

    def owners(self) -> dict[str, str]:
        """Who owns each slot now."""
        return {event["slot_id"]: event["owner"] for event in self.events("slot")}

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something to be seen in the run's files, while the run goes on."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s:\n{self.output}"
            time.sleep(_POLL_S)

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end within {DEADLINE_S} s:\n{self.output}") from None

    def interrupt(self) -> None:
        """What Ctrl-C does in a terminal: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def processes(self) -> list[psutil.Process]:
        """Living processes of the run: all that inherited its mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it ended while we looked, or is not ours
                continue
        return found

    def words(self) -> set[str]:
        """All words of the commands of the run's processes."""
        return {word for process in self.processes() for word in process.cmdline()}

    def ray_folder(self) -> Path:
        """Of the sockets and logs of the run's own Ray, which is up."""
        (folder,) = {found[0] for word in self.words() if (found := re.search(r"/tmp/rlserve-ray-[^/]+", word))}
        return Path(folder)

    def wait_for_no_processes(self) -> None:
        """Wait until nothing of the run is left."""
        deadline = time.monotonic() + DEADLINE_S / 5
        while left := self.processes():
            assert time.monotonic() < deadline, f"left behind: {[' '.join(each.cmdline()) for each in left]}"
            time.sleep(_POLL_S)

    def end(self) -> None:
        """Kill whatever is left of the run."""
        for process in self.processes():
            process.kill()
        self.process.wait()


class Workplace:
    """A folder with a model, prompts and a reward, in which runs are started; all are ended at its end."""

    def __init__(self, place: Path, model: Path, prompts: Path) -> None:
        self.place = place
        self.runs: list[Run] = []
        (place / "reward.py").write_text(REWARD)
        parts = {
            "model": {"path": str(model)},
            "data": {"path": str(prompts), "num_held_out": 4},
            "reward": {"function": f"{place}/reward.py:reward"},
        }
        self._base = merged(SMALL, parts)

    def config(self, changes: Mapping[str, Any] | None = None) -> Path:
        """Write a configuration: the small one with changes."""
        path = self.place / f"config-{len(list(self.place.glob('config-*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(merged(self._base, changes or {})))
        return path

    def start(
        self, name: str, changes: Mapping[str, Any] | None = None, *words: str, environment: Mapping[str, str] = {}
    ) -> Run:
        """Start a new run."""
        return self._started(Run(self.place, [str(self.config(changes)), f"name={name}", *words], name, environment))

    def resume(self, name: str, *words: str, run: str | None = None) -> Run:
        """Take up a run where it stopped; ``run`` is what --resume is given, if not the name."""
        return self._started(Run(self.place, ["--resume", run or name, *words], name, {}))

    def hold(self) -> None:
        """Let no reward be given until :meth:`release`: runs come to a standstill, and cannot end too early."""
        (self.place / "held").touch()

    def release(self) -> None:
        """Go on after :meth:`hold`."""
        (self.place / "held").unlink()

    def end(self) -> None:
        """End all runs that were started here."""
        for run in self.runs:
            run.end()

    def _started(self, run: Run) -> Run:
        self.runs.append(run)
        return run
