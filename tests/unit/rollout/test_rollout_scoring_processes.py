"""Scorer workers that are processes of this machine: real ones, with rewards that do as they like."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from test_rollout_reward_function import make_sample, reward_file

from rlserve.errors import RewardError, WorkerLostError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.scoring import ScorerWorker
from rlserve.rollout.scoring import factory as scoring_factory
from rlserve.rollout.scoring.factory import create_scorer
from rlserve.rollout.scoring.local_worker import LocalScorerWorker

_BODY = """
import os, time
def score(sample):
    print("seen", sample.response)
    if sample.response == "hang":
        time.sleep(1000)
    if sample.response == "pid":
        return os.getpid()
    if sample.response == "threads":
        return float(os.environ["OMP_NUM_THREADS"])
    return float(sample.response)
"""


def run(folder: Path, scenario: Callable[[LocalScorerWorker], Awaitable[None]], *, timeout_s: float = 60.0) -> str:
    """Play ``scenario`` on a worker; returns what its reward printed."""
    log = folder / "logs" / "reward.log"
    config = RewardConfig(function=reward_file(folder, _BODY), timeout_s=timeout_s)
    worker = LocalScorerWorker(config, name="scorer-7", log_path=log)

    async def play() -> None:
        try:
            await scenario(worker)
        finally:
            worker.close()

    asyncio.run(play())
    return log.read_text()


async def value(worker: ScorerWorker, response: str) -> float | None:
    (score,) = await worker.score([make_sample(response)])
    return score.value


def test_scores_come_back_and_prints_are_kept_behind_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    async def scenario(worker: LocalScorerWorker) -> None:
        await worker.start()
        assert await value(worker, "0.5") == 0.5
        assert await value(worker, "threads") == 1.0

    assert "scorer-7 seen 0.5\n" in run(tmp_path, scenario)


def test_a_reward_that_hangs_is_lost_in_time_and_a_new_process_goes_on(tmp_path: Path) -> None:
    async def scenario(worker: LocalScorerWorker) -> None:
        first = await value(worker, "pid")
        with pytest.raises(WorkerLostError, match=r"reward for prompt .*: no answer within reward.timeout_s=0.5"):
            await worker.score([make_sample("hang")])
        worker.close()
        assert await value(worker, "pid") != first

    run(tmp_path, scenario, timeout_s=0.5)


def test_a_process_that_is_killed_is_lost_at_once(tmp_path: Path) -> None:
    async def scenario(worker: LocalScorerWorker) -> None:
        process_id = await value(worker, "pid")
        assert process_id is not None
        hanging = asyncio.create_task(worker.score([make_sample("hang")]))
        await asyncio.sleep(0)
        os.kill(int(process_id), signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="its process was ended by signal 9"):
            await hanging

    run(tmp_path, scenario)


def test_a_process_that_is_stopped_is_lost_in_time_however_much_it_was_to_be_given(tmp_path: Path) -> None:
    async def scenario(worker: LocalScorerWorker) -> None:
        process_id = await value(worker, "pid")
        assert process_id is not None
        os.kill(int(process_id), signal.SIGSTOP)
        with pytest.raises(WorkerLostError, match=r"reward for prompt .*: not taken within reward.timeout_s=0.5"):
            await worker.score([make_sample("1" * 10_000_000)])

    run(tmp_path, scenario, timeout_s=0.5)


def test_a_reward_that_cannot_be_loaded_leaves_no_process(tmp_path: Path) -> None:
    config = RewardConfig(function=reward_file(tmp_path, "1 / 0"))
    worker = LocalScorerWorker(config, name="scorer-0", log_path=None)
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        asyncio.run(worker.start())
    with pytest.raises(RewardError, match="ZeroDivisionError"):  # and none is asked that is not there
        asyncio.run(worker.score([make_sample("1")]))


@pytest.mark.parametrize(
    ("config", "on_this_machine", "is_plain"),
    [
        (RewardConfig(function="a:b"), True, True),
        (RewardConfig(function="a:b"), False, False),
        (RewardConfig(function="a:b", num_cpus=0.5), True, False),
        (RewardConfig(function="a:b", num_gpus=0.5), True, False),
        (RewardConfig(model_path="m"), True, False),
    ],
)
def test_ray_is_asked_where_it_sets_something_aside_or_there_are_other_machines(
    config: RewardConfig, on_this_machine: bool, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(scoring_factory, "LocalScorerWorker", lambda *_, name, log_path: made.append(name))
    monkeypatch.setattr(scoring_factory, "RayScorerWorker", lambda *_: made.append("ray"))
    scorer = create_scorer(config, Path("reward.log"), on_this_machine=on_this_machine)
    expected = [f"scorer-{index}" if is_plain else "ray" for index in range(config.num_processes)]
    assert (made, scorer.num_workers) == (expected, config.num_processes)
