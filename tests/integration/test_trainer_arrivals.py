"""Ranks that join while the others step on: when state comes in, the same bits, and what a rank lost meanwhile does."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainer_ranks import Meetings, Rank, call_all, create_all, digest_alone, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.errors import NonFiniteLossError, WorkerFailedError
from rlserve.trainers import AlgorithmConfig, GRPOConfig, PPOConfig, TorchTrainerConfig

CONFIG = TorchTrainerConfig(learning_rate=1e-2, critic_learning_rate=1e-2, num_logical_shards=7, timeout_s=60.0)
ALGORITHM = PPOConfig(
    num_epochs=2, num_mini_batches=2, kl_coefficient=0.05, target_kl=0.02, kl_horizon=50.0, entropy_coefficient=0.01
)
BATCHES = [random_batch(seed, num_samples=20) for seed in range(5)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[list[Rank]]:
    with running_ranks(2) as ranks:
        yield ranks


@pytest.fixture
def newcomer() -> Iterator[Rank]:
    """Its process is changed by the test."""
    with running_ranks(1) as [rank]:
        yield rank


@pytest.fixture(scope="module")
def meetings() -> Meetings:
    return Meetings()


def create(
    ranks: list[Rank], model_path: str, algorithm: AlgorithmConfig = ALGORITHM, *, timeout_s: float = 60.0
) -> None:
    """Rank 0 with weights, the others to receive theirs."""
    create_all(ranks, dataclasses.replace(CONFIG, timeout_s=timeout_s), algorithm, model_path)


def begin(
    meetings: Meetings, stayers: list[Rank], newcomer: Rank, model_path: str, algorithm: AlgorithmConfig = ALGORITHM
) -> list[Rank]:
    """One step without the newcomer, which then joins."""
    ranks = [*stayers, newcomer]
    create(ranks, model_path, algorithm)
    meetings.regroup(stayers)
    call_all(stayers, "step", BATCHES[0])
    meetings.join(ranks)
    return ranks


def test_ranks_that_stay_reach_their_gradient_before_the_newcomer_has_anything(
    two_ranks: list[Rank], newcomer: Rank, meetings: Meetings, model_path: str
) -> None:
    algorithm = GRPOConfig()  # a step is one forward and backward pass
    expected = digest_alone(two_ranks[0], CONFIG, algorithm, model_path, BATCHES[:2])
    newcomer.call("hold_arrivals")
    ranks = begin(meetings, two_ranks, newcomer, model_path, algorithm)
    call_all(two_ranks, "announce", "_backward_passes")
    for rank in two_ranks:
        rank.start("step", BATCHES[1])
    for rank in two_ranks:
        assert rank.result() == "_backward_passes"
    assert not newcomer.call("has_arrived")
    newcomer.call("release_arrivals")
    newcomer.start("step", BATCHES[1])
    metrics = [rank.result() for rank in ranks]
    assert metrics == [metrics[0]] * 3
    assert call_all(ranks, "digest") == [expected] * 3


def test_several_joins_give_the_bits_of_one_rank(two_ranks: list[Rank], meetings: Meetings, model_path: str) -> None:
    expected = digest_alone(two_ranks[0], CONFIG, ALGORITHM, model_path, BATCHES)
    with running_ranks(2) as others:
        ranks = [*two_ranks, *others]
        create(ranks, model_path)
        two_ranks[0].call("step", BATCHES[0])
        for number in (2, 3, 4):
            meetings.join(ranks[:number])
            call_all(ranks[:number], "step", BATCHES[number - 1])
        meetings.regroup(ranks[1:])
        call_all(ranks[1:], "step", BATCHES[4])
        assert call_all(ranks[1:], "digest") == [expected] * 3


def test_a_group_that_joins_before_the_first_step_gives_the_bits_of_one_rank(
    two_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    expected = digest_alone(two_ranks[0], CONFIG, ALGORITHM, model_path, BATCHES[:1])
    create(two_ranks, model_path)
    meetings.join(two_ranks)
    call_all(two_ranks, "step", BATCHES[0])
    assert call_all(two_ranks, "digest") == [expected] * 2


def begin_and_lose(
    meetings: Meetings,
    ranks: list[Rank],
    victim: Rank,
    model_path: str,
    *,
    transfer: int,
    how: signal.Signals,
    timeout_s: float = 60.0,
) -> list[Rank]:
    """One step of the first two ranks, which the third then joins; one of the three does not get past a transfer, so
    the others fail in their step. Returns these."""
    create(ranks, model_path, timeout_s=timeout_s)
    meetings.regroup(ranks[:2])
    call_all(ranks[:2], "step", BATCHES[0])
    victim.call("signal_self_in_arrival", transfer, how)
    meetings.meet(ranks)
    for index, rank in enumerate(ranks):
        rank.start("resize", index, 3, 1, meetings.generation)
    survivors = [rank for rank in ranks if rank is not victim]
    for rank in survivors:
        rank.result()
    for rank in survivors:
        rank.start("step", BATCHES[1])
    for rank in survivors:
        with pytest.raises(WorkerFailedError, match=f"no answer from rank {ranks.index(victim)} "):
            rank.result()
    return survivors


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["first-sender", "second-sender", "newcomer"])
@pytest.mark.parametrize("transfer", [0, 3], ids=["parameters", "second-moments"])
def test_whoever_is_lost_while_state_comes_in_the_others_go_on_with_the_same_bits(
    two_ranks: list[Rank], meetings: Meetings, model_path: str, lost: int, transfer: int
) -> None:
    expected = digest_alone(two_ranks[0], CONFIG, ALGORITHM, model_path, BATCHES[:3])
    with running_ranks(1) as [victim]:
        ranks = [*two_ranks[:lost], victim, *two_ranks[lost:]]
        survivors = begin_and_lose(meetings, ranks, victim, model_path, transfer=transfer, how=signal.SIGKILL)
    meetings.regroup(survivors)
    assert call_all(survivors, "num_steps") == [1, 1]
    for batch in BATCHES[1:3]:
        call_all(survivors, "step", batch)
    assert call_all(survivors, "digest") == [expected] * 2


def test_a_rank_that_is_stopped_while_state_comes_in_is_named_when_the_deadline_passes(
    two_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    with running_ranks(1) as [victim]:
        ranks = [*two_ranks, victim]
        begin_and_lose(meetings, ranks, victim, model_path, transfer=0, how=signal.SIGSTOP, timeout_s=3.0)
    meetings.regroup(two_ranks)
    assert call_all(two_ranks, "num_steps") == [1, 1]


def test_a_checkpoint_waits_for_what_still_comes_in(
    two_ranks: list[Rank], newcomer: Rank, meetings: Meetings, model_path: str, tmp_path: Path
) -> None:
    expected = digest_alone(two_ranks[0], CONFIG, ALGORITHM, model_path, BATCHES[:1])
    newcomer.call("hold_arrivals")
    ranks = begin(meetings, two_ranks, newcomer, model_path)
    for rank in two_ranks:
        rank.start("copy_state")
    assert not newcomer.call("has_arrived")
    newcomer.call("release_arrivals")
    newcomer.call("copy_state")
    for rank in two_ranks:
        rank.result()
    call_all(ranks, "write_state", tmp_path)
    create(two_ranks[:1], model_path)
    two_ranks[0].call("load_files", tmp_path)
    assert two_ranks[0].call("digest") == expected


def test_a_group_that_changes_again_before_all_has_come_in_has_lost_nothing(
    two_ranks: list[Rank], newcomer: Rank, meetings: Meetings, model_path: str
) -> None:
    expected = digest_alone(two_ranks[0], CONFIG, ALGORITHM, model_path, BATCHES[:3])
    newcomer.call("hold_arrivals")
    ranks = begin(meetings, two_ranks, newcomer, model_path)
    meetings.start(two_ranks, num_ranks=2)
    newcomer.call("release_arrivals")
    for rank in two_ranks:
        rank.result()
    call_all(two_ranks, "step", BATCHES[1])
    newcomer.call("leave")
    meetings.join(ranks)
    call_all(ranks, "step", BATCHES[2])
    assert call_all(ranks, "digest") == [expected] * 3


def test_a_step_that_is_not_finite_leaves_what_has_come_in(
    two_ranks: list[Rank], newcomer: Rank, meetings: Meetings, model_path: str
) -> None:
    expected = digest_alone(two_ranks[0], CONFIG, ALGORITHM, model_path, BATCHES[:2])
    ranks = begin(meetings, two_ranks, newcomer, model_path)
    bad = random_batch(3, num_samples=20)
    bad.rewards[0] = 3e38  # its square is too much for float32
    for rank in ranks:
        rank.start("step", bad)
    for rank in ranks:
        with pytest.raises(NonFiniteLossError, match="step 2 is not finite"):
            rank.result()
    call_all(ranks, "step", BATCHES[1])
    assert call_all(ranks, "digest") == [expected] * 3
