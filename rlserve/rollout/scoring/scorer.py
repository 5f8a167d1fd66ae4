"""The pool of scorer workers: each prompt group goes to the first that is free."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from rlserve.errors import RewardError, RlserveError, WorkerFailedError, WorkerLostError
from rlserve.rollout.failure_share import WINDOW, FailureShare
from rlserve.rollout.rewards.base import TRUNCATED, RewardSample, Score
from rlserve.rollout.scoring.base import AnswerScorer, ScorerWorker

logger = logging.getLogger(__name__)


async def score_in_groups(
    scorer: AnswerScorer, samples: Sequence[RewardSample], size: int, *, max_failure_share: float
) -> list[Score]:
    """One score for each of any number of samples, in groups of ``size`` side by side.

    ``size`` is that of the groups in training, so that ``reward.timeout_s`` means the same. Where no worker could score
    a group, each of its scores is an error. Once as many groups failed as would end training (``max_failure_share``),
    those that are left are not tried: with a reward that hangs, each would take its whole deadline.
    """
    share = FailureShare(max_failure_share)
    free = asyncio.Semaphore(scorer.num_workers)
    too_many = False

    async def score_group(group: Sequence[RewardSample]) -> list[Score]:
        nonlocal too_many
        async with free:
            if too_many:
                return [Score(error=f"not tried: {share.num_failed} of the last {WINDOW} groups failed") for _ in group]
            try:
                scores = await scorer.score(group)
            except RewardError as error:
                scores = [Score(error=str(error)) for _ in group]
            too_many |= share.note(failed=any(score.error is not None for score in scores))
            return scores

    groups = [samples[start : start + size] for start in range(0, len(samples), size)]
    async with asyncio.TaskGroup() as tasks:
        scored = [tasks.create_task(score_group(group)) for group in groups]
    return [score for task in scored for score in task.result()]


class Scorer:
    """Scores prompt groups side by side, one for each worker. A worker that is lost holds up only its own group."""

    def __init__(self, workers: Sequence[ScorerWorker]) -> None:
        self._workers = tuple(workers)
        self._free: asyncio.Queue[ScorerWorker] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._num_scored = 0
        self._scoring_s = 0.0
        self._num_truncated = 0

    @property
    def num_workers(self) -> int:
        """Groups that can be scored at once."""
        return len(self._workers)

    async def start(self) -> None:
        """Start all workers.

        Raises:
            RewardError: the reward cannot be found or loaded.
            WorkerFailedError: a process did not come up.
        """
        await asyncio.gather(*(worker.start() for worker in self._workers))
        for worker in self._workers:
            self._free.put_nowait(worker)

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """One score for each sample, by the first worker that is free. Its deadline begins when it has the samples.

        Whoever cancels this leaves at once; the worker takes new samples when it is done with these.

        Raises:
            RewardError: no worker could score them: the reward hung past its deadline or killed its process.
        """
        worker = await self._free.get()
        return await asyncio.shield(self._spawn(self._score_on(worker, samples)))

    def close(self) -> None:
        """End all processes."""
        for task in self._tasks:
            task.cancel()
        for worker in self._workers:
            worker.close()

    async def _score_on(self, worker: ScorerWorker, samples: Sequence[RewardSample]) -> list[Score]:
        start = asyncio.get_running_loop().time()
        try:
            scores = await worker.score(samples)
        except WorkerLostError as error:
            logger.warning("%s; starting a new reward worker", error)
            worker.close()
            self._spawn(self._revive(worker))
            raise RewardError(f"{error} ({self._pace(len(samples))})") from None
        except (WorkerFailedError, RewardError) as error:
            self._free.put_nowait(worker)
            raise RewardError(str(error)) from None
        self._free.put_nowait(worker)
        self._num_scored += len(samples)
        self._scoring_s += asyncio.get_running_loop().time() - start
        self._note_truncated(scores)
        return scores

    def _note_truncated(self, scores: Sequence[Score]) -> None:
        before = self._num_truncated
        self._num_truncated += sum(score.parts.get(TRUNCATED, 0) > 0 for score in scores)
        if self._num_truncated.bit_length() > before.bit_length():  # each time that it has doubled
            logger.warning(
                "%d of %d texts were too long for the reward model and lost their beginning, prompt and all that came "
                "first; shorten them by rollout.max_tokens and data.max_prompt_tokens",
                self._num_truncated,
                self._num_scored,
            )

    async def _revive(self, worker: ScorerWorker) -> None:
        try:
            await worker.start()
        except RlserveError as error:
            logger.warning("%s; tried again with the next prompt group", error)
        self._free.put_nowait(worker)

    def _pace(self, num_answers: int) -> str:
        """How fast answers are scored, for the message of a group that was not scored in time."""
        group = f"a group of {num_answers} answer{'s' if num_answers > 1 else ''}"
        if not self._num_scored:
            return f"{group}; none was scored before"
        return f"{group}; an answer took {self._scoring_s / self._num_scored:.2g} s on average before"

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has heard of it, or has left
