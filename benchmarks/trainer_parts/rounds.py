"""Runs both sides of a case in turn, each in a process of its own, as ``engine_rounds`` does: while one is at work the
other is stopped. Who begins changes with every round."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine_rounds import PeerFailedError, PeerProcess, missing_reason, worker_environment
from models import SHAPES, model_folder

from rlserve.tasks.cache import PREFIX, resolve_data, resolve_model
from trainer_parts.base import Assignment, Case, Outcome, Turn
from trainer_parts.factory import OUR_NAME, REQUIRED_MODULE

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent.parent
_PROGRAM = ("-m", "trainer_parts.worker")


@dataclass(kw_only=True)
class PeerResult:
    """One side in all rounds of a case."""

    peer: str
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    missing: str | None = None
    """Why it was not measured, or not in every round."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Both sides on one case."""

    case: Case
    ours: PeerResult
    peer: PeerResult
    load_average: float
    """Load of the machine in the minute before: what else ran on it."""


def run_case(
    case: Case, pythons: Mapping[str, str | None], *, num_rounds: int, num_threads: int, model_cache: Path
) -> CaseResult:
    """Measure ours and the peer on the case.

    Args:
        pythons: by name of a peer, the Python that runs it; None where there is none.
        num_rounds: rounds after the warm-up, which is a turn of its own.
        num_threads: threads of each side.
        model_cache: where models with random weights are, or are written.
    """
    load_average = os.getloadavg()[0]
    assignment = assignment_of(case, num_threads=num_threads, model_cache=model_cache)
    environment = environment_of(os.environ, num_threads)
    results = {name: PeerResult(peer=name) for name in (OUR_NAME, case.peer)}
    with ExitStack() as stack:
        processes: dict[str, PeerProcess] = {}
        for name, result in results.items():
            result.missing = missing_reason(REQUIRED_MODULE[name], pythons[name], environment)
            if result.missing is None:
                process = PeerProcess(str(pythons[name]), environment, program=_PROGRAM)
                processes[name] = stack.enter_context(process)
                _load(processes[name], result, assignment)
        for index in range(1, num_rounds + 1):
            order = list(results) if index % 2 else list(reversed(results))
            for name in order:
                if results[name].missing is None:
                    _measure(processes[name], results[name], case, index)
            _compare_work(results[OUR_NAME], results[case.peer])
    return CaseResult(case=case, ours=results[OUR_NAME], peer=results[case.peer], load_average=load_average)


def assignment_of(case: Case, *, num_threads: int, model_cache: Path) -> Assignment:
    """What both sides are told; makes models and data that are not there yet."""
    if case.kind in ("step", "score"):
        path = f"{PREFIX}{case.task}"
        model, data = str(resolve_model(path)), str(resolve_data(path)[0].parent)
    else:
        model, data = str(model_folder(SHAPES[case.shape], model_cache)), ""
    return Assignment(case=case, model_folder=model, data_folder=data, num_threads=num_threads)


def environment_of(environment: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """Of both sides: threads as asked for, that wait passively, and the modules of the benchmark to be found."""
    path = os.pathsep.join((str(_FOLDER), str(_FOLDER.parent)))
    return {
        **worker_environment(environment, num_threads),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": path,
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }


def _load(process: PeerProcess, result: PeerResult, assignment: Assignment) -> None:
    logger.info("%s: loading %s", assignment.case.name, result.peer)
    try:
        answer = process.ask({"command": "load", "peer": result.peer, "assignment": asdict(assignment)})
        result.versions, result.settings = answer["versions"], answer["settings"]
        _ask(process, assignment.case, 0)
    except PeerFailedError as error:
        result.missing = f"failed to load: {error}"


def _measure(process: PeerProcess, result: PeerResult, case: Case, index: int) -> None:
    try:
        outcome = _ask(process, case, index)
    except PeerFailedError as error:
        result.missing = f"failed in round {index}: {error}"
        return
    result.outcomes.append(outcome)
    logger.info("%s: round %d, %s: %.4g %s", case.name, index, result.peer, outcome.value, case.unit)


def _ask(process: PeerProcess, case: Case, index: int) -> Outcome:
    turn = Turn(index=index, num_steps=case.steps_per_turn)
    return Outcome(**process.ask({"command": f"turn {index}", "turn": asdict(turn)}))


def _compare_work(ours: PeerResult, peer: PeerResult) -> None:
    """A round in which the two did different things counts for neither."""
    if ours.missing or peer.missing or ours.outcomes[-1].work == peer.outcomes[-1].work:
        return
    peer.missing = f"did other work: {peer.outcomes.pop().work}, and ours {ours.outcomes.pop().work}"
