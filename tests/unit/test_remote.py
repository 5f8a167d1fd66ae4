"""Calls to workers: who is to blame for a call that fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, ObjectReconstructionFailedError, RayActorError, RayTaskError

from rlserve.errors import ArgumentLostError, RewardError, RlserveError, WorkerFailedError, WorkerLostError
from rlserve.remote import answer

GONE = ObjectLostError("ab" * 28, None, "")


def in_worker(cause: Exception) -> RayTaskError:
    """As Ray raises it: of the cause's class as well."""
    error: RayTaskError = RayTaskError("load_weights", "traceback", cause).as_instanceof_cause()
    return error


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (GONE, ArgumentLostError),
        (in_worker(GONE), ArgumentLostError),
        (in_worker(ObjectReconstructionFailedError("ab" * 28, None, "")), ArgumentLostError),
        (RayActorError(), WorkerLostError),
        (in_worker(ValueError("odd")), WorkerFailedError),
        (in_worker(RewardError("a reward")), RewardError),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)[:40]),
)
def test_each_failure_has_its_culprit(raised: Exception, expected: type[RlserveError]) -> None:
    async def call() -> Any:
        raise raised

    with pytest.raises(RlserveError) as caught:
        asyncio.run(answer(call(), timeout_s=1.0, what="the replica on a"))
    assert type(caught.value) is expected


def test_no_answer_in_time_is_the_workers_loss() -> None:
    with pytest.raises(WorkerLostError, match=r"the replica on a: no answer for 0\.01 s"):
        asyncio.run(answer(asyncio.sleep(60), timeout_s=0.01, what="the replica on a"))


def test_who_is_cancelled_just_when_the_answer_comes_ends() -> None:
    """Or it would go on to its next call, and whoever waits for its end waits for ever."""

    async def scenario() -> None:
        call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(answer(call, timeout_s=60.0, what="the replica on a"))
        await asyncio.sleep(0)
        call.set_result(None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
