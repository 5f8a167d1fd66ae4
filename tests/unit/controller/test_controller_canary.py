"""A replica that computes other log-probabilities than the trainer is found, given the weights anew, and replaced."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from controller_fakes import FakeWorker, recorded, run_context
from simulated_run import SimulatedRun, make_config, simulate
from simulated_world import World

from rlserve.config.tree import RunConfig
from rlserve.controller.canary import CanaryWatch, Taken
from rlserve.engine.config import EngineConfig
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig
from rlserve.rollout.config import RolloutConfig
from rlserve.tracking.events import CanaryEvent, FailureEvent
from rlserve.tracking.run_folder import RunFolder
from rlserve.weights.canary import CanaryScores
from rlserve.weights.offer import Receipt

TRAINED: CanaryScores = ((-1.0, -2.0), (-3.0, -4.0))
SLIGHTLY: CanaryScores = ((-1.05, -2.05), (-3.0, -4.0))
WRONG: CanaryScores = ((-1.0, -2.0), (-3.5, -4.5))
NOT_FINITE: CanaryScores = ((-1.0, math.nan), (-3.0, -4.0))


class Setting:
    """A replica that scores as it is told, call by call."""

    def __init__(self, *scores: CanaryScores) -> None:
        self.worker = FakeWorker("r0", [])
        self.context = run_context()
        self.events = recorded(self.context.events, CanaryEvent)
        self.watch = CanaryWatch(self.context, tolerance=0.1, timeout_s=5.0)
        self.takes: list[bool] = []
        self._scores = list(scores)
        self.worker.answers["score_canary"] = lambda version: self._scores.pop(0)

    def accept(self, version: int = 7, expected: CanaryScores = TRAINED) -> Receipt:
        async def take(anew: bool) -> Taken:
            self.takes.append(anew)
            return Taken(receipt=Receipt(version=version, fingerprint=1, load_s=0.0), expected=expected)

        outside: Any = self.worker
        return asyncio.run(self.watch.accepted("r0", outside, take))


def test_one_that_computes_as_the_trainer_takes_its_version_once() -> None:
    setting = Setting(SLIGHTLY)
    assert setting.accept().version == 7
    assert setting.takes == [False]
    assert setting.worker.arguments["score_canary"] == [(7,)]
    assert setting.events == []
    assert setting.watch.metrics() == {
        "weights/canary_difference_max": pytest.approx(0.05),
        "weights/num_canary_refreshes": 0,
    }


@pytest.mark.parametrize("found", [WRONG, NOT_FINITE])
def test_one_that_differs_takes_the_weights_anew_and_it_is_said(
    found: CanaryScores, caplog: pytest.LogCaptureFixture
) -> None:
    setting = Setting(found, TRAINED)
    with caplog.at_level(logging.WARNING):
        assert setting.accept().version == 7
    assert setting.takes == [False, True]
    (event,) = setting.events
    assert (event.slot_id, event.version, event.is_replaced) == ("r0", 7, False)
    assert event.difference == (0.5 if found is WRONG else math.inf)
    assert "the replica on r0 differs from the trainer by" in caplog.text
    assert "canary of version 7" in caplog.text
    assert setting.watch.metrics()["weights/num_canary_refreshes"] == 1


def test_one_that_still_differs_is_lost() -> None:
    setting = Setting(WRONG, WRONG)
    with pytest.raises(WorkerLostError, match=r"r0 differs from the trainer by 0\.5 nats a token in the canary"):
        setting.accept()
    assert [event.is_replaced for event in setting.events] == [False, True]


def test_a_version_without_a_canary_is_taken_as_it_is() -> None:
    setting = Setting()
    assert setting.accept(expected=()).version == 7
    assert "score_canary" not in setting.worker.arguments
    assert setting.watch.metrics() == {}


def test_the_metric_is_the_largest_of_the_newest_version() -> None:
    setting = Setting(SLIGHTLY, TRAINED, TRAINED, SLIGHTLY)
    for version, largest in ((1, 0.05), (1, 0.05), (2, 0.0), (1, 0.0)):
        setting.accept(version)
        assert setting.watch.metrics()["weights/canary_difference_max"] == pytest.approx(largest)


def test_one_that_fails_while_it_scores_is_no_different_from_one_that_fails_otherwise() -> None:
    setting = Setting()
    setting.worker.answers["score_canary"] = WorkerFailedError("the engine stopped")
    with pytest.raises(WorkerFailedError, match="the engine stopped"):
        setting.accept()
    assert setting.takes == [False]


def run_config(placement: Any) -> RunConfig:
    return make_config(
        num_steps=20,
        rollout=RolloutConfig(
            prompts_per_step=4,
            samples_per_prompt=2,
            max_staleness=1,
            request_timeout_s=60.0,
            engine=EngineConfig(max_num_sequences=4),
        ),
        pool=PoolConfig(placement=placement, max_worker_failures=3),
    )


@pytest.mark.parametrize("placement", ["separate", "colocated"])
def test_a_replica_that_computes_wrongly_is_replaced_and_the_run_goes_on(tmp_path: Path, placement: str) -> None:
    async def spoil(run: SimulatedRun) -> None:
        while run.controller.summary().num_steps < 5:
            await asyncio.sleep(0.5)
        run.living(Role.ROLLOUT if placement == "separate" else Role.TRAIN)[0].miscomputes = 3

    run = simulate(run_config(placement), RunFolder.create(tmp_path, "canary"), world=World(seed=2), disturb=spoil)
    run.check(max_staleness=1)
    summary = run.controller.summary()
    assert (summary.num_steps, summary.worker_failures) == (20, 1)
    first, second = run.tracker.of(CanaryEvent)
    assert (first.is_replaced, second.is_replaced) == (False, True)
    (failure,) = run.tracker.of(FailureEvent)
    assert failure.slot_id == first.slot_id == second.slot_id
    assert "differs from the trainer by 1.5 nats a token" in failure.reason
    last = [metrics for _, metrics in run.tracker.logged if "weights/num_canary_refreshes" in metrics][-1]
    assert (last["weights/num_canary_refreshes"], last["weights/canary_difference_max"]) == (1, 0.0)
