"""The trainer on several real processes: the same bits on any number of ranks, and what a lost rank does."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainer_ranks import Meetings, Rank, call_all, create_all, digest_alone, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.errors import DeadlineExceededError, NonFiniteLossError, StateLostError, UserError, WorkerFailedError
from rlserve.trainers import AlgorithmConfig, GRPOConfig, PPOConfig, TorchTrainerConfig, Traffic

CONFIG = TorchTrainerConfig(
    learning_rate=1e-2,
    critic_learning_rate=1e-2,
    critic_head_learning_rate=3e-2,
    num_logical_shards=7,
    timeout_s=60.0,
)
SHARED_TRUNK = dataclasses.replace(CONFIG, critic_trunk="shared")
of_both_trunks = pytest.mark.parametrize(
    "config", [CONFIG, SHARED_TRUNK], ids=lambda config: f"{config.critic_trunk}-trunk"
)
ALGORITHM = PPOConfig(
    num_epochs=2, num_mini_batches=2, kl_coefficient=0.05, target_kl=0.02, kl_horizon=50.0, entropy_coefficient=0.01
)
BATCHES = [random_batch(seed, num_samples=20) for seed in range(6)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[list[Rank]]:
    with running_ranks(4) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def meetings() -> Meetings:
    return Meetings()


def create(
    ranks: list[Rank],
    model_path: str,
    algorithm: AlgorithmConfig = ALGORITHM,
    config: TorchTrainerConfig = CONFIG,
) -> None:
    """Rank 0 with weights, the others to receive theirs."""
    create_all(ranks, config, algorithm, model_path)


@pytest.mark.slow
@of_both_trunks
@pytest.mark.parametrize("algorithm", [ALGORITHM, PPOConfig()], ids=["four-updates", "single-update"])
def test_a_step_has_the_same_bits_on_1_to_4_ranks(
    four_ranks: list[Rank], meetings: Meetings, model_path: str, algorithm: PPOConfig, config: TorchTrainerConfig
) -> None:
    alone = four_ranks[0]
    expected = digest_alone(alone, config, algorithm, model_path, BATCHES[:2])
    expected_scores = alone.call("scores", BATCHES[2])
    expected_metrics = alone.call("step", BATCHES[2])
    for num_ranks in (2, 3, 4):
        ranks = four_ranks[:num_ranks]
        create(ranks, model_path, algorithm, config)
        meetings.regroup(ranks)
        for batch in BATCHES[:2]:
            call_all(ranks, "step", batch)
        assert call_all(ranks, "digest") == [expected] * num_ranks
        assert call_all(ranks, "scores", BATCHES[2]) == [expected_scores] * num_ranks
        assert call_all(ranks, "step", BATCHES[2]) == [expected_metrics] * num_ranks


@pytest.mark.parametrize(
    "algorithm",
    [
        ALGORITHM,
        GRPOConfig(kl_loss_coefficient=0.1, num_mini_batches=2),
        GRPOConfig(loss_mode="gspo", clip_ratio_low=0.01, clip_ratio_high=0.01, num_mini_batches=2),
    ],
    ids=["ppo", "grpo", "gspo"],
)
def test_more_ranks_than_logical_shards(
    four_ranks: list[Rank], meetings: Meetings, model_path: str, algorithm: AlgorithmConfig
) -> None:
    small = random_batch(9, num_samples=3)
    expected = digest_alone(four_ranks[0], CONFIG, algorithm, model_path, [small])
    create(four_ranks, model_path, algorithm)
    meetings.regroup(four_ranks)
    call_all(four_ranks, "step", small)
    assert call_all(four_ranks, "digest") == [expected] * 4


@of_both_trunks
def test_a_run_that_resizes_equals_the_run_on_one_rank(
    four_ranks: list[Rank], meetings: Meetings, model_path: str, config: TorchTrainerConfig
) -> None:
    expected = digest_alone(four_ranks[3], config, ALGORITHM, model_path, BATCHES)
    first, second, third = four_ranks[:3]
    create([first, second, third], model_path, config=config)
    first.call("step", BATCHES[0])
    meetings.regroup([first, second, third])
    for batch in BATCHES[1:3]:
        call_all([first, second, third], "step", batch)
    # The old rank 0 leaves for good, a survivor takes its place.
    first.call("leave")
    meetings.regroup([third, second])
    call_all([third, second], "step", BATCHES[3])
    # A rank that has left comes back and receives everything again.
    meetings.regroup([second, first])
    call_all([second, first], "step", BATCHES[4])
    meetings.regroup([first])
    first.call("step", BATCHES[5])
    assert first.call("digest") == expected


def test_a_rank_that_joins_is_sent_what_it_lacks_and_nothing_else(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    first, second = ranks = four_ranks[:2]
    create(ranks, model_path)
    first.call("step", BATCHES[0])
    num_bytes = sum(array.nbytes for array in first.call("state").values())
    traffic, same = meetings.regroup(ranks)
    assert traffic == same
    assert traffic.moved_bytes == traffic.least_bytes == pytest.approx(num_bytes, rel=0.01)
    assert meetings.regroup([second, first]) == [Traffic()] * 2, "each of two holds everything"


def test_a_group_that_meets_beside_a_step_is_taken_at_its_end_with_the_same_bits(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    expected = digest_alone(four_ranks[3], CONFIG, ALGORITHM, model_path, BATCHES[:3])
    first, second, third = ranks = four_ranks[:3]
    create(ranks, model_path)
    meetings.regroup([first, second])
    for rank in meetings.meet(ranks):
        if rank is not third:
            rank.start("step", BATCHES[0])
    for rank in (first, second):
        rank.result()
    meetings.regroup_as_met(ranks)
    call_all(ranks, "step", BATCHES[1])
    meetings.meet(ranks)
    meetings.regroup([second, third])  # another than the one that has met
    call_all([second, third], "step", BATCHES[2])
    assert call_all([second, third], "digest") == [expected] * 2
    first.call("leave")


def test_a_loss_that_is_not_finite_stops_every_rank_and_changes_none(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    ranks = four_ranks[:2]
    create(ranks, model_path)
    meetings.regroup(ranks)
    before = call_all(ranks, "digest")
    bad = random_batch(3, num_samples=20)
    bad.rewards[0] = 3e38  # its square is too much for float32
    for rank in ranks:
        rank.start("step", bad)
    for rank in ranks:
        with pytest.raises(NonFiniteLossError, match="step 1 is not finite"):
            rank.result()
    assert call_all(ranks, "digest") == before
    call_all(ranks, "step", BATCHES[0])
    assert call_all(ranks, "digest") == [digest_alone(four_ranks[2], CONFIG, ALGORITHM, model_path, BATCHES[:1])] * 2


@of_both_trunks
@pytest.mark.parametrize(
    ("lost", "where", "num_completed"),
    [
        pytest.param(0, "all_gather", 1, id="scoring"),
        pytest.param(2, "all_to_all", 1, id="summing"),
        pytest.param(0, "update", 1, id="between-updates"),
        pytest.param(2, "complete_step", 2, id="last-update"),
    ],
)
def test_survivors_of_a_killed_rank_settle_the_step_and_go_on(
    four_ranks: list[Rank],
    meetings: Meetings,
    model_path: str,
    lost: int,
    where: str,
    num_completed: int,
    config: TorchTrainerConfig,
) -> None:
    """In each case the lost rank is the owner of one shard, and the second holder of another."""
    expected = digest_alone(four_ranks[0], config, ALGORITHM, model_path, BATCHES[:3])
    with running_ranks(1) as [victim]:
        ranks = [*four_ranks[:lost], victim, *four_ranks[lost:2]]
        create(ranks, model_path, config=config)
        meetings.regroup(ranks)
        call_all(ranks, "step", BATCHES[0])
        victim.call("signal_self_in", where, signal.SIGKILL)
        survivors = [rank for rank in ranks if rank is not victim]
        for rank in ranks:
            rank.start("step", BATCHES[1])
        for rank in survivors:
            with pytest.raises(WorkerFailedError, match=f"no answer from rank {lost} "):
                rank.result()
        meetings.regroup(survivors)
        assert call_all(survivors, "num_steps") == [num_completed] * 2
        for batch in BATCHES[num_completed:3]:
            call_all(survivors, "step", batch)
        assert call_all(survivors, "digest") == [expected] * 2


def test_a_step_that_one_rank_has_completed_is_completed_by_all(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    expected = digest_alone(four_ranks[3], CONFIG, ALGORITHM, model_path, BATCHES[:2])
    metrics = four_ranks[3].call("last_metrics")
    ranks = four_ranks[:3]
    create(ranks, model_path)
    meetings.regroup(ranks)
    call_all(ranks, "step", BATCHES[0])
    ranks[1].call("raise_in", "complete_step")
    for rank in ranks:
        rank.start("step", BATCHES[1])
    for rank in ranks:
        with pytest.raises((WorkerFailedError, UserError)):
            rank.result()
    # The one that has completed nothing, those that have, and one that is new.
    meetings.regroup([ranks[1], ranks[2], four_ranks[3]])
    assert call_all(ranks[1:], "num_steps") == [2, 2]
    assert call_all(ranks[1:], "last_metrics") == [metrics] * 2
    assert call_all([*ranks[1:], four_ranks[3]], "digest") == [expected] * 3


def test_both_holders_of_a_shard_are_missed_and_two_who_are_not_neighbours_are_not(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    create(four_ranks, model_path)
    meetings.regroup(four_ranks)
    call_all(four_ranks, "step", BATCHES[0])
    expected = call_all(four_ranks, "digest")[0]
    meetings.start(four_ranks[2:], num_ranks=2)
    for rank in four_ranks[2:]:
        with pytest.raises(StateLostError, match="no trainer is left that holds 25% of the optimizer's state"):
            rank.result()
    others = four_ranks[1::2]
    meetings.regroup(others)
    assert call_all(others, "digest") == [expected] * 2


def test_two_neighbours_that_leave_together_hand_over_first(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    create(four_ranks, model_path)
    meetings.regroup(four_ranks)
    call_all(four_ranks, "step", BATCHES[0])
    (before,) = set(call_all(four_ranks, "digest"))
    meetings.regroup(four_ranks, num_leaving=2)
    call_all(four_ranks[2:], "leave")
    staying = four_ranks[:2]
    meetings.regroup(staying)
    assert call_all(staying, "digest") == [before] * 2


@pytest.mark.parametrize(
    ("num_before", "num_after", "config"),
    [(4, 1, CONFIG), (1, 3, CONFIG), (2, 4, CONFIG), (4, 1, SHARED_TRUNK), (1, 3, SHARED_TRUNK)],
    ids=["4-1", "1-3", "2-4", "4-1-shared-trunk", "1-3-shared-trunk"],
)
def test_a_state_is_written_by_all_beside_the_next_step_and_loads_on_another_number_of_ranks(
    four_ranks: list[Rank],
    meetings: Meetings,
    model_path: str,
    tmp_path: Path,
    num_before: int,
    num_after: int,
    config: TorchTrainerConfig,
) -> None:
    writers, readers = four_ranks[:num_before], four_ranks[:num_after]
    create(writers, model_path, config=config)
    meetings.regroup(writers)
    call_all(writers, "step", BATCHES[0])
    (expected,) = set(call_all(writers, "digest"))
    call_all(writers, "copy_state")
    call_all(writers, "step", BATCHES[1])
    (expected_next,) = set(call_all(writers, "digest"))
    for writer in writers:
        writer.call("leave")
        writer.call("write_state", tmp_path)
    files = {path.name: path.stat().st_size for path in (tmp_path / "trainer").glob("*.safetensors")}
    assert len(files) == num_before
    assert max(files.values()) < 1.2 * sum(files.values()) / num_before, "each writes its share"
    create(readers, model_path, config=config)
    meetings.regroup(readers)
    call_all(readers, "load_files", tmp_path)
    assert call_all(readers, "digest") == [expected] * num_after
    call_all(readers, "step", BATCHES[1])
    assert call_all(readers, "digest") == [expected_next] * num_after


def test_a_rank_that_raises_alone_stops_the_others_at_once(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    ranks = four_ranks[:3]
    patient = dataclasses.replace(CONFIG, timeout_s=3600.0)  # longer than the test may take
    for rank in ranks:
        rank.call("create", patient, ALGORITHM, model_path)
    before = ranks[0].call("digest")
    meetings.regroup(ranks)
    ranks[1].call("raise_in", "all_to_all")
    for rank in ranks:
        rank.start("step", BATCHES[0])
    for rank, error in zip(ranks, (WorkerFailedError, UserError, WorkerFailedError), strict=True):
        with pytest.raises(error):
            rank.result()
    meetings.regroup(ranks)
    assert call_all(ranks, "digest") == [before] * 3


def test_a_stopped_rank_is_named_when_the_deadline_passes(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    with running_ranks(1) as [victim]:
        ranks = [four_ranks[0], victim, four_ranks[1]]
        config = TorchTrainerConfig(timeout_s=3.0)
        for rank in ranks:
            rank.call("create", config, ALGORITHM, model_path)
        meetings.regroup(ranks)
        victim.call("signal_self_in", "all_gather", signal.SIGSTOP)
        for rank in ranks:
            rank.start("step", BATCHES[0])
        for rank in (ranks[0], ranks[2]):
            with pytest.raises(WorkerFailedError, match="no answer from rank 1 "):
                rank.result()


def test_a_member_that_does_not_come_is_named(four_ranks: list[Rank], meetings: Meetings, model_path: str) -> None:
    ranks = four_ranks[:2]
    for rank in ranks:
        rank.call("create", TorchTrainerConfig(timeout_s=3.0), ALGORITHM, model_path)
    before = call_all(ranks, "digest")
    meetings.start(ranks, num_ranks=3)
    for rank in ranks:
        with pytest.raises(DeadlineExceededError, match=r"rank 2 of 3 did not join at 127\.0\.0\.1:\d+ within 3 s"):
            rank.result()
    assert call_all(ranks, "digest") == before
    meetings.regroup(ranks)


def test_a_store_that_rank_0_does_not_serve_is_named(
    four_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    ranks = four_ranks[:2]
    for rank in ranks:
        rank.call("create", TorchTrainerConfig(timeout_s=2.0), ALGORITHM, model_path)
    meetings.start(ranks, num_ranks=2)
    for rank in ranks:
        rank.result()
    ranks[0].call("leave")
    ranks[1].start("resize", 1, 2, 1, 99)
    with pytest.raises(DeadlineExceededError, match=r"rank 0 did not serve its store at 127\.0\.0\.1:1"):
        ranks[1].result()
