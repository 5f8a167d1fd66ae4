"""The pool of scorer workers, with workers that wait for the test instead of processes."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import RewardError, WorkerFailedError, WorkerLostError
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.output import MarkedLines
from rlserve.rollout.scoring import Scorer, ScorerWorker, score_in_groups


class FakeWorker(ScorerWorker):
    """Holds the group that it was given until the test ends it."""

    def __init__(self) -> None:
        self.num_starts = 0
        self.running = False
        self.group: str | None = None
        self.parts: dict[str, float] = {}
        self.start_error: Exception | None = None
        self._outcome: asyncio.Future[None]

    async def start(self) -> None:
        await asyncio.sleep(0)
        if self.start_error is not None:
            raise self.start_error
        self.num_starts += 1
        self.running = True

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        if not self.running:
            await self.start()
        assert self.group is None, "one group at a time"
        self.group = samples[0].id
        self._outcome = asyncio.get_running_loop().create_future()
        try:
            await self._outcome
        finally:
            self.group = None
        return [Score(value=1.0, parts=self.parts) for _ in samples]

    def close(self) -> None:
        self.running = False

    def finish(self) -> None:
        self._outcome.set_result(None)

    def fail(self, error: Exception) -> None:
        self._outcome.set_exception(error)


def group(name: str) -> list[RewardSample]:
    sample = RewardSample(
        id=name, prompt="", response="", answer=None, finished=True, prompt_token_ids=(), response_token_ids=()
    )
    return [sample, sample]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def started(num_workers: int) -> tuple[Scorer, list[FakeWorker]]:
    workers = [FakeWorker() for _ in range(num_workers)]
    scorer = Scorer(workers)
    await scorer.start()
    return scorer, workers


def test_groups_go_to_whichever_worker_is_free() -> None:
    async def scenario() -> None:
        scorer, (first, second) = await started(2)
        calls = [asyncio.create_task(scorer.score(group(name))) for name in "abc"]
        await settled()
        assert (first.group, second.group) == ("a", "b")
        second.finish()
        await settled()
        assert (first.group, second.group) == ("a", "c")
        second.finish()
        first.finish()
        assert await asyncio.gather(*calls) == [[Score(value=1.0)] * 2] * 3

    asyncio.run(scenario())


def test_a_lost_worker_is_started_anew_while_the_other_goes_on() -> None:
    async def scenario() -> None:
        scorer, (first, second) = await started(2)
        calls = [asyncio.create_task(scorer.score(group(name))) for name in "abcd"]
        await settled()
        second.finish()
        await settled()
        first.fail(WorkerLostError("reward for prompt a: no answer for 5 s"))
        with pytest.raises(RewardError, match=r"no answer for 5 s \(a group of 2 answers; an answer took .* s on aver"):
            await calls[0]
        await settled()
        assert (first.group, second.group, first.num_starts) == ("d", "c", 2)
        first.finish()
        second.finish()
        await asyncio.gather(*calls[1:])

    asyncio.run(scenario())


def test_a_worker_that_does_not_come_up_again_is_tried_with_the_next_group() -> None:
    async def scenario() -> None:
        scorer, (worker,) = await started(1)
        call = asyncio.create_task(scorer.score(group("a")))
        await settled()
        worker.start_error = WorkerFailedError("no memory")
        worker.fail(WorkerLostError("died"))
        with pytest.raises(RewardError, match=r"died \(a group of 2 answers; none was scored before\)"):
            await call
        with pytest.raises(RewardError, match="no memory"):
            await scorer.score(group("b"))
        worker.start_error = None
        call = asyncio.create_task(scorer.score(group("c")))
        await settled()
        assert worker.group == "c"
        worker.finish()
        await call

    asyncio.run(scenario())


def test_a_reward_that_raised_something_odd_keeps_its_worker() -> None:
    async def scenario() -> None:
        scorer, (worker,) = await started(1)
        call = asyncio.create_task(scorer.score(group("a")))
        await settled()
        worker.fail(WorkerFailedError("reward for prompt a: OutOfMemoryError"))
        with pytest.raises(RewardError, match="OutOfMemoryError"):
            await call
        assert worker.num_starts == 1

    asyncio.run(scenario())


def test_whoever_leaves_does_not_disturb_the_next() -> None:
    """A cancelled evaluation leaves at once; its worker takes the next group only when it has ended the old one."""

    async def scenario() -> None:
        scorer, (worker,) = await started(1)
        left = asyncio.create_task(scorer.score(group("held-out")))
        await settled()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        call = asyncio.create_task(scorer.score(group("a")))
        await settled()
        assert worker.group == "held-out"
        worker.fail(WorkerLostError("died"))
        await settled()
        assert (worker.group, worker.num_starts) == ("a", 2)
        worker.finish()
        await call

    asyncio.run(scenario())


@given(st.data())
def test_every_group_is_answered_once_whatever_happens_to_the_workers(data: st.DataObject) -> None:
    async def scenario() -> None:
        scorer, workers = await started(data.draw(st.integers(1, 3)))
        calls = [asyncio.create_task(scorer.score(group(str(number)))) for number in range(8)]
        for call in calls:
            call.add_done_callback(lambda task: task.cancelled() or task.exception())
        while not all(call.done() for call in calls):
            await settled()
            busy = [worker for worker in workers if worker.group is not None]
            if not busy:
                break
            worker = data.draw(st.sampled_from(busy))
            action = data.draw(st.sampled_from(["finish", "fail", "die", "cancel"]))
            if action == "finish":
                worker.finish()
            elif action == "cancel":
                data.draw(st.sampled_from(calls)).cancel()
            else:
                worker.fail(WorkerLostError("died") if action == "die" else WorkerFailedError("raised"))
        await settled()
        assert all(call.done() for call in calls)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, list | RewardError | asyncio.CancelledError)
        assert all(worker.running for worker in workers)
        while any(worker.group is not None for worker in workers):  # what was cancelled, but is still being scored
            next(worker for worker in workers if worker.group is not None).finish()
            await settled()
        last = [asyncio.create_task(scorer.score(group("last"))) for _ in workers]
        await settled()
        assert all(worker.group == "last" for worker in workers), "every worker is free again"
        for worker in workers:
            worker.finish()
        await asyncio.gather(*last)

    asyncio.run(scenario())


def test_texts_that_a_reward_model_cannot_read_whole_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        scorer, (worker,) = await started(1)
        worker.parts = {"truncated": 1.0}
        for name in "abcd":
            call = asyncio.create_task(scorer.score(group(name)))
            await settled()
            worker.finish()
            await call

    asyncio.run(scenario())
    assert [message.split(" texts")[0] for message in caplog.messages] == ["2 of 2", "4 of 4", "8 of 8"]


def test_whole_lines_go_to_the_log_with_their_origin(tmp_path: Path) -> None:
    path = tmp_path / "reward.log"
    with path.open("wb") as file:
        lines = MarkedLines(file.fileno(), "scorer-1")
        for data in (b"half", b" a line\nanother\nun", b"finished"):
            lines.write(data)
        lines.flush()
    marked = re.sub(rb"^[0-9:]{8} ", b"", path.read_bytes(), flags=re.MULTILINE)
    assert marked == b"scorer-1 half a line\nscorer-1 another\nscorer-1 unfinished\n"


def test_a_full_disk_loses_lines_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written, full = tmp_path / "reward.log", os.write, True

    def write(file_descriptor: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(file_descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with path.open("wb") as file:
        lines = MarkedLines(file.fileno(), "probe")
        for data in (b"one\ntwo\n", b"three\n"):
            lines.write(data)
        full = False
        for data in (b"four\n", b"five\n"):
            lines.write(data)
    marked = re.sub(rb"^[0-9:]{8} probe ", b"", path.read_bytes(), flags=re.MULTILINE)
    assert marked == b"(3 lines are missing: they could not be written)\nfour\nfive\n"


def test_groups_are_no_longer_tried_once_as_many_failed_as_would_end_training() -> None:
    async def scenario() -> tuple[list[Score], int]:
        scorer, (worker,) = await started(1)
        samples = [sample for number in range(20) for sample in group(str(number))]
        scoring = asyncio.create_task(score_in_groups(scorer, samples, 2, max_failure_share=0.25))
        num_tried = 0
        while not scoring.done():
            await settled()
            if worker.group is not None:
                num_tried += 1
                if worker.group == "0":
                    worker.finish()
                else:
                    worker.fail(WorkerLostError("no answer for 5 s"))
        return await scoring, num_tried

    scores, num_tried = asyncio.run(scenario())
    assert num_tried == 1 + 9, "eight of 32 may fail"
    assert [score.value for score in scores] == [1.0] * 2 + [None] * 38
    assert all("no answer for 5 s" in str(score.error) for score in scores[2:20])
    assert {score.error for score in scores[20:]} == {"not tried: 9 of the last 32 groups failed"}
