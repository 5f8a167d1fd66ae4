"""A long run whose ranks come, go and die at random, against the same run on one rank: every metric of every step, and
every bit of the state."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from random import Random

import pytest
from trainer_ranks import Meetings, Rank, call_all, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.errors import WorkerFailedError
from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig

pytestmark = pytest.mark.slow

CONFIG = TorchTrainerConfig(learning_rate=1e-3, critic_learning_rate=1e-3, num_logical_shards=4, timeout_s=60.0)
ALGORITHM = PPOConfig(kl_coefficient=0.05, num_mini_batches=2)
NUM_STEPS = 200
MOST_RANKS = 4
BATCHES = [random_batch(seed, num_samples=8, longest=6) for seed in range(10)]
PLACES_OF_DEATH = (
    ("_backward_passes", 0),
    ("all_to_all", 0),
    ("all_to_all", 2),
    ("all_gather", 0),
    ("all_gather", 3),
    ("update", 0),
    ("complete_step", 0),
)
"""Operations of a step, and how often one is done before it is the last."""
NUM_RESIZES, NUM_DEATHS = 24, 8


def batch_of(step: int) -> Batch:
    return BATCHES[step % len(BATCHES)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class ElasticRun:
    """Ranks that train together, and what happens to them."""

    def __init__(self, model_path: str, random: Random, processes: ExitStack) -> None:
        self.metrics: list[dict[str, float]] = []
        """Of every step."""
        self.num_resizes = self.num_deaths = 0
        self._model_path = model_path
        self._random = random
        self._processes = processes
        self._meetings = Meetings()
        self.ranks = [self._newcomer(load_weights=True)]

    def step(self) -> None:
        found = call_all(self.ranks, "step", batch_of(len(self.metrics)))
        assert found == [found[0]] * len(self.ranks)
        self.metrics.append(found[0])

    def resize(self) -> None:
        """To another number of ranks, some of which may be new; in half of the cases they meet first."""
        num_ranks = self._random.choice([number for number in range(1, MOST_RANKS + 1) if number != len(self.ranks)])
        before = self.ranks
        self.ranks = self._random.sample(before, min(num_ranks, len(before)))
        self.ranks += [self._newcomer() for _ in range(num_ranks - len(self.ranks))]
        leaving = [rank for rank in before if rank not in self.ranks]
        if leaving:  # they hand over what they hold alone
            self._meetings.regroup([*self.ranks, *leaving], num_leaving=len(leaving))
            call_all(leaving, "leave")
        if leaving or self._random.random() < 0.5:
            self._meetings.regroup(self.ranks)
        else:
            self._meetings.join(self.ranks)
        self.num_resizes += 1

    def step_with_a_death(self) -> None:
        """Somebody dies somewhere in the step, which the others then complete or do again."""
        step = len(self.metrics)
        victim = self._random.choice(self.ranks)
        place, num_before = self._random.choice(PLACES_OF_DEATH)
        victim.call("signal_self_in", place, signal.SIGKILL, num_before=num_before)
        for rank in self.ranks:
            rank.start("step", batch_of(step))
        survivors = [rank for rank in self.ranks if rank is not victim]
        for rank in survivors:
            with suppress(WorkerFailedError):  # one that holds everything needs the victim no more at the end
                rank.result()
        victim.process.join()
        self.ranks = survivors
        self._meetings.regroup(survivors)
        [num_steps] = set(call_all(survivors, "num_steps"))
        assert num_steps in (step, step + 1)
        if num_steps == step:
            self.step()
        else:
            self.metrics.append(survivors[0].call("last_metrics"))
        self.num_deaths += 1

    def _newcomer(self, *, load_weights: bool = False) -> Rank:
        [rank] = self._processes.enter_context(running_ranks(1))
        rank.call("create", CONFIG, ALGORITHM, self._model_path, load_weights=load_weights)
        return rank


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_resizes_and_deaths_leave_no_trace(model_path: str, processes: ExitStack) -> None:
    random = Random(0)
    resizes = random.sample(range(1, NUM_STEPS), NUM_RESIZES)
    deaths = random.sample(range(1, NUM_STEPS), NUM_DEATHS)
    run = ElasticRun(model_path, random, processes)
    for step in range(NUM_STEPS):
        if step in resizes or (step in deaths and len(run.ranks) == 1):
            run.resize()
        if step in deaths and len(run.ranks) > 1:
            run.step_with_a_death()
        else:
            run.step()
    assert run.num_resizes >= 20
    assert run.num_deaths >= 5
    digests = call_all(run.ranks, "digest")

    [alone] = processes.enter_context(running_ranks(1))
    alone.call("create", CONFIG, ALGORITHM, model_path)
    for step in range(NUM_STEPS):
        assert alone.call("step", batch_of(step)) == run.metrics[step]
    assert digests == [alone.call("digest")] * len(run.ranks)
