"""Runs the peers of a case in turn, each in a process of its own.

    start, load, warm up   every peer, one after the other, then stopped
    round 1                ours ─► hf ─► vllm        a peer runs while all the others are stopped
    round 2                ours ─► hf ─► vllm
    …

The rounds are interleaved because a shared machine is never the same for long: only peers of one round are compared.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from engine_cases import Case, make_requests, num_output_tokens, peer_options
from models import SHAPES, model_folder
from peers.base import PeerOptions, RunOutcome
from peers.factory import REQUIRED_MODULE
from process_usage import Usage, group_members, group_usage

logger = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("engine_worker.py")
ANSWER_DEADLINE_S = 3600.0
CLOCK_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""The system counts processor time in these: a run shorter than one counts as none."""
_ERROR_LINES = 20
"""Lines of a dead worker's stderr that are shown."""


class PeerFailedError(Exception):
    """A peer's process ended, or cannot be started; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One peer in one round."""

    wall_s: float
    cpu_s: float
    """Processor time of all threads and processes of the peer: hardly changes with what else runs on the machine."""
    num_output_tokens: int
    first_token_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Useful output tokens per second of the whole run."""
        return self.num_output_tokens / self.wall_s

    @property
    def tokens_per_cpu_s(self) -> float:
        """Useful output tokens per second of processor time."""
        return self.num_output_tokens / max(self.cpu_s, CLOCK_TICK_S)


@dataclass(kw_only=True)
class PeerResult:
    """A peer in all rounds of a case."""

    peer: str
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    rounds: list[Measurement] = field(default_factory=list)
    peak_rss_bytes: int = 0
    """Sum over the peer's processes of the most that each has held."""
    missing: str | None = None
    """Why the peer was not measured, or not in every round."""


class PeerProcess:
    """A worker and its children, stopped except while it does something."""

    def __init__(self, python: str, environment: Mapping[str, str], *, program: Sequence[str] = (str(WORKER),)) -> None:
        """``program`` is what Python is told to run: it obeys one JSON object a line, as ``engine_worker`` does."""
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        self._process = subprocess.Popen(
            [python, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=dict(environment),
            start_new_session=True,  # a group of its own, with all its children: they are stopped together
        )

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Wake the process, send a command, wait for the answer and stop it again.

        Raises:
            PeerFailedError: the process ended, with the end of its stderr, or passed its deadline.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerFailedError(self._last_words()) from error
        answered, _, _ = select.select([self._process.stdout], [], [], ANSWER_DEADLINE_S)
        if not answered:
            self._signal(signal.SIGKILL)
            raise PeerFailedError(f"did not answer {message['command']!r} within {ANSWER_DEADLINE_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailedError(self._last_words())
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def usage(self) -> Usage:
        """What the processes of the group that are alive have used so far."""
        return group_usage(self._process.pid)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._stderr.close()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the group; it may be gone, which the next read notices."""
        if group_members(self._process.pid):
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().splitlines()[-_ERROR_LINES:]
        return "\n".join([f"ended with exit code {code}", *lines])


def run_case(
    case: Case, pythons: Mapping[str, str | None], *, num_rounds: int, num_threads: int, model_cache: Path
) -> list[PeerResult]:
    """Measure every peer on the case.

    Args:
        pythons: the Python that runs each peer, in the order in which they take turns; None where there is none.
        num_rounds: rounds after the warm-up.
        num_threads: threads of each peer.
        model_cache: where the model folder is, or is written.
    """
    folder = model_folder(SHAPES[case.shape], model_cache)
    options = peer_options(case, model_folder=str(folder), num_threads=num_threads)
    results = {
        peer: PeerResult(peer=peer, missing=missing_reason(REQUIRED_MODULE[peer], python))
        for peer, python in pythons.items()
    }
    with ExitStack() as stack:
        processes: dict[str, PeerProcess] = {}
        for peer, python in pythons.items():
            if python is not None and results[peer].missing is None:
                process = stack.enter_context(PeerProcess(python, worker_environment(os.environ, num_threads)))
                if _load(process, results[peer], case, options):
                    processes[peer] = process
        for round_index in range(1, num_rounds + 1):
            for peer in list(processes):
                if not _measure(processes[peer], results[peer], case, round_index):
                    del processes[peer]
    return list(results.values())


def missing_reason(module: str, python: str | None, environment: Mapping[str, str] | None = None) -> str | None:
    """Why a peer that needs the module cannot run with that Python, or None if it can."""
    if python is None:
        return "not installed: no Python was named for it"
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", program], capture_output=True, env=environment).returncode == 0
    except OSError as error:
        return f"not installed: {error}"
    return None if found else f"not installed: {python} has no {module}"


def worker_environment(environment: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """The environment of every worker: threads as asked for, which do not spin while they wait unless the user's
    own ``OMP_WAIT_POLICY`` says so, and nothing fetched from a network."""
    return {
        "OMP_WAIT_POLICY": "passive",
        **environment,
        "OMP_NUM_THREADS": str(num_threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _load(process: PeerProcess, result: PeerResult, case: Case, options: PeerOptions) -> bool:
    logger.info("%s: loading %s", case.name, result.peer)
    warm_up = [asdict(request) for request in make_requests(case, 0)]
    message = {"command": "load", "peer": result.peer, "options": asdict(options), "warm_up": warm_up}
    try:
        answer = process.ask(message)
    except PeerFailedError as error:
        result.missing = f"failed to load: {error}"
        return False
    result.versions, result.settings = answer["versions"], answer["settings"]
    return True


def _measure(process: PeerProcess, result: PeerResult, case: Case, round_index: int) -> bool:
    requests = make_requests(case, round_index)
    cpu_before_s = process.usage().cpu_s
    try:
        answer = process.ask({"command": "run", "requests": [asdict(request) for request in requests]})
    except PeerFailedError as error:
        result.missing = f"failed in round {round_index}: {error}"
        return False
    outcome = RunOutcome(**answer["outcome"])
    expected = num_output_tokens(requests)
    if outcome.num_output_tokens != expected:
        result.missing = f"made {outcome.num_output_tokens} tokens in round {round_index} instead of {expected}"
        return False
    usage = process.usage()
    measurement = Measurement(
        wall_s=answer["wall_s"],
        cpu_s=usage.cpu_s - cpu_before_s,
        num_output_tokens=outcome.num_output_tokens,
        first_token_s=tuple(outcome.first_token_s),
    )
    result.rounds.append(measurement)
    result.peak_rss_bytes = usage.peak_rss_bytes
    logger.info(
        "%s: round %d, %s: %.0f tokens/s in %.1f s",
        case.name,
        round_index,
        result.peer,
        measurement.tokens_per_s,
        measurement.wall_s,
    )
    return True
