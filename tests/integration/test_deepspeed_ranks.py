"""The backend ``deepspeed`` on two real processes: the losses of the backend ``torch``, other numbers of ranks, a
checkpoint for any of them, and what a lost rank costs."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_ranks import Meetings, Rank, call_all, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.engine.models.checkpoint import Checkpoint
from rlserve.errors import NonFiniteLossError, StateLostError, UserError, WorkerFailedError
from rlserve.trainers import (
    AlgorithmConfig,
    DeepSpeedTrainerConfig,
    GRPOConfig,
    LoraConfig,
    PPOConfig,
    TorchTrainerConfig,
    TrainerConfig,
)

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")

SHARED: dict[str, Any] = {
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-2,
    "critic_head_learning_rate": 3e-2,
    "weight_decay": 0.1,
    "num_warmup_steps": 3,
    "timeout_s": 60.0,
}
TORCH = TorchTrainerConfig(num_logical_shards=2, **SHARED)
PPO = PPOConfig(num_mini_batches=2, kl_coefficient=0.05, target_kl=0.02, kl_horizon=50.0, entropy_coefficient=0.01)
BATCHES = [random_batch(seed, num_samples=10) for seed in range(5)]
NOT_COMPARED = ("perf/padding_share", "critic/vf_clipfrac")
"""How samples are padded depends on the number of ranks; how many values are just clipped, on the last bit."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ranks() -> Iterator[list[Rank]]:
    with running_ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def meetings() -> Meetings:
    return Meetings()


@pytest.fixture(scope="module")
def expected(ranks: list[Rank], model_path: str) -> list[dict[str, float]]:
    """The metrics of each step in plain PyTorch."""
    return steps_alone(ranks[0], TORCH, PPO, model_path)


def steps_alone(
    rank: Rank, config: TrainerConfig, algorithm: AlgorithmConfig, model_path: str
) -> list[dict[str, float]]:
    rank.call("create", config, algorithm, model_path)
    return [rank.call("step", batch) for batch in BATCHES]


def create(
    ranks: Sequence[Rank], model_path: str, zero_stage: Any, algorithm: AlgorithmConfig = PPO, **changes: Any
) -> None:
    """Rank 0 with weights, the others to receive theirs."""
    config = DeepSpeedTrainerConfig(zero_stage=zero_stage, ppo_max_token_len_per_gpu=60, **{**SHARED, **changes})
    for index, rank in enumerate(ranks):
        rank.start("create", config, algorithm, model_path, load_weights=index == 0)
    for rank in ranks:
        rank.result()


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    compared = [name for name in expected if name not in NOT_COMPARED]
    assert {name: found[name] for name in compared} == pytest.approx(
        {name: expected[name] for name in compared}, rel=1e-4, abs=1e-5
    )


def of_policy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in state.items() if name.startswith("policy.")}


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not np.array_equal(one[name], other[name])] == []


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_losses_and_norms_are_those_of_torch(
    ranks: list[Rank], meetings: Meetings, model_path: str, expected: list[dict[str, float]], zero_stage: int
) -> None:
    create(ranks, model_path, zero_stage)
    meetings.regroup(ranks)
    for batch, metrics in zip(BATCHES, expected, strict=True):
        one, other = call_all(ranks, "step", batch)
        assert one == other
        assert_close(one, metrics)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_critic_on_the_policys_trunk_has_the_losses_of_torch_on_any_number_of_ranks(
    ranks: list[Rank], meetings: Meetings, model_path: str, tmp_path: Path, zero_stage: int
) -> None:
    first, second = ranks
    algorithm = dataclasses.replace(PPO, bootstrap_truncated=True)
    on_one_trunk = dataclasses.replace(TORCH, critic_trunk="shared")
    expected = steps_alone(first, on_one_trunk, algorithm, model_path)
    create(ranks, model_path, zero_stage, algorithm, critic_trunk="shared")
    assert_close(first.call("step", BATCHES[0]), expected[0])
    meetings.regroup(ranks)
    one, other = call_all(ranks, "step", BATCHES[1])
    assert one == other
    assert_close(one, expected[1])
    call_all(ranks, "copy_state")
    for rank in ranks:
        rank.call("write_state", tmp_path)
    state, _ = call_all(ranks, "state")
    assert {name for name in state if name.startswith("critic.")} == {
        "critic.value_head.weight",
        "critic.value_head.bias",
    }
    policy = {name: tensor.numpy() for name, tensor in Checkpoint(tmp_path / "policy").tensors()}
    assert_same_state({f"policy.{name}": array for name, array in policy.items()}, of_policy(state))
    meetings.regroup([second, first], num_leaving=1)
    first.call("leave")
    meetings.regroup([second])
    assert_close(second.call("step", BATCHES[2]), expected[2])
    first.call("create", on_one_trunk, algorithm, model_path)
    first.call("load_files", tmp_path)
    assert_same_state(first.call("state"), state)
    assert_close(first.call("step", BATCHES[2]), expected[2])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True, "activation_checkpointing": True},
            id="all-in-host-memory",
        ),
        pytest.param({"zero_stage": 1, "lora": LoraConfig(rank=2)}, id="adapters"),
    ],
)
def test_what_saves_memory_changes_no_loss(
    ranks: list[Rank], meetings: Meetings, model_path: str, changes: dict[str, Any]
) -> None:
    algorithm = GRPOConfig(kl_loss_coefficient=0.1)
    lora = changes.get("lora", LoraConfig())
    expected = steps_alone(ranks[0], TorchTrainerConfig(lora=lora, **SHARED), algorithm, model_path)[:2]
    create(ranks, model_path, algorithm=algorithm, **changes)
    meetings.regroup(ranks)
    for batch, metrics in zip(BATCHES[:2], expected, strict=True):
        assert_close(call_all(ranks, "step", batch)[0], metrics)


def test_losses_of_whole_answers_are_those_of_torch(ranks: list[Rank], meetings: Meetings, model_path: str) -> None:
    algorithm = GRPOConfig(loss_mode="gspo", clip_ratio_low=0.01, clip_ratio_high=0.01, num_mini_batches=2)
    expected = steps_alone(ranks[0], TORCH, algorithm, model_path)[:2]
    create(ranks, model_path, 2, algorithm)
    meetings.regroup(ranks)
    for batch, metrics in zip(BATCHES[:2], expected, strict=True):
        assert_close(call_all(ranks, "step", batch)[0], metrics)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_run_that_resizes_gives_the_losses_of_one_that_does_not(
    ranks: list[Rank], meetings: Meetings, model_path: str, expected: list[dict[str, float]], zero_stage: int
) -> None:
    create(ranks, model_path, zero_stage)
    first, second = ranks
    assert_close(first.call("step", BATCHES[0]), expected[0])
    meetings.regroup(ranks)
    assert_close(call_all(ranks, "step", BATCHES[1])[1], expected[1])
    # Who stays has not all; who leaves takes part once more, and hands over.
    meetings.start([second], num_ranks=1)
    with pytest.raises(StateLostError, match=rf"no trainer .* holds \d+% of the state, .*zero_stage={zero_stage}"):
        second.result()
    meetings.regroup([second, first], num_leaving=1)
    first.call("leave")
    meetings.regroup([second])
    assert_close(second.call("step", BATCHES[2]), expected[2])
    first.call("prepare")
    meetings.regroup([second, first])
    assert_close(call_all([second, first], "step", BATCHES[3])[0], expected[3])
    together = call_all([second, first], "log_probs", BATCHES[4])
    assert np.array_equal(*together)
    if zero_stage < 3:
        assert np.allclose(second.call("log_probs_alone", BATCHES[4]), together[0], atol=1e-5)


def test_under_stage_3_each_rank_has_a_part_of_the_policy_and_writes_a_file_of_it(
    ranks: list[Rank], meetings: Meetings, model_path: str, tmp_path: Path
) -> None:
    create(ranks, model_path, 3)
    meetings.regroup(ranks)
    for batch in (None, BATCHES[0]):
        if batch is not None:
            call_all(ranks, "step", batch)
        state, _ = call_all(ranks, "state")
        parts = [rank.call("weights") for rank in ranks]
        assert not parts[0].keys() & parts[1].keys()
        sizes = [sum(array.nbytes for array in part.values()) for part in parts]
        expected = of_policy(state)
        assert abs(sizes[0] - sizes[1]) <= max(array.nbytes for array in expected.values())
        found = parts[0] | parts[1]
        assert_same_state({f"policy.{name}": array for name, array in found.items()}, expected)
    for rank in ranks:
        rank.call("save_pretrained", tmp_path)
    assert len(list(tmp_path.glob("model-*-of-00002.safetensors"))) == 2
    written = {name: tensor.numpy() for name, tensor in Checkpoint(tmp_path).tensors()}
    assert_same_state(written, found)


def test_a_checkpoint_loads_on_another_number_of_ranks_and_in_torch(
    ranks: list[Rank],
    meetings: Meetings,
    model_path: str,
    expected: list[dict[str, float]],
    tmp_path: Path,
) -> None:
    create(ranks, model_path, 3)
    meetings.regroup(ranks)
    call_all(ranks, "step", BATCHES[0])
    one, other = call_all(ranks, "state")
    assert_same_state(one, other)
    call_all(ranks, "copy_state")
    call_all(ranks, "step", BATCHES[1])
    for rank in ranks:
        rank.call("write_state", tmp_path)
    sizes = [path.stat().st_size for path in (tmp_path / "trainer").glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes), "each writes its share"
    first, second = ranks
    create([first], model_path, 2)
    second.call("create", TORCH, PPO, model_path)
    for rank in ranks:
        rank.call("load_files", tmp_path)
        assert_same_state(rank.call("state"), one)
        assert_close(rank.call("step", BATCHES[1]), expected[1])
    policy = {name: tensor.numpy() for name, tensor in Checkpoint(tmp_path / "policy").tensors()}
    assert all(np.array_equal(policy[name], one[f"policy.{name}"]) for name in policy)


def test_a_loss_that_is_not_finite_stops_every_rank_and_changes_none(
    ranks: list[Rank], meetings: Meetings, model_path: str, expected: list[dict[str, float]]
) -> None:
    create(ranks, model_path, 2)
    meetings.regroup(ranks)
    before = call_all(ranks, "state")[0]
    bad = random_batch(3, num_samples=10)
    bad.rewards[0] = 3e38  # its square is too much for float32
    for rank in ranks:
        rank.start("step", bad)
    for rank in ranks:
        with pytest.raises(NonFiniteLossError, match="step 1 is not finite"):
            rank.result()
    assert_same_state(call_all(ranks, "state")[0], before)
    assert_close(call_all(ranks, "step", BATCHES[0])[0], expected[0])


def test_a_rank_that_raises_alone_stops_the_other_at_once_and_both_go_on(
    ranks: list[Rank], meetings: Meetings, model_path: str, expected: list[dict[str, float]]
) -> None:
    create(ranks, model_path, 2, timeout_s=3600.0)  # longer than the test may take
    meetings.regroup(ranks)
    ranks[1].call("raise_in", "update")
    for rank in ranks:
        rank.start("step", BATCHES[0])
    for rank, error in zip(ranks, (WorkerFailedError, UserError), strict=True):
        with pytest.raises(error):
            rank.result()
    meetings.regroup(ranks)
    assert_close(call_all(ranks, "step", BATCHES[0])[0], expected[0])


def test_a_lost_rank_takes_along_what_is_cut_up(ranks: list[Rank], meetings: Meetings, model_path: str) -> None:
    survivor = ranks[0]
    with running_ranks(1) as [victim]:
        create([survivor, victim], model_path, 2)
        meetings.regroup([survivor, victim])
        call_all([survivor, victim], "step", BATCHES[0])
        victim.call("signal_self_in", "update", signal.SIGKILL)
        for rank in (survivor, victim):
            rank.start("step", BATCHES[1])
        with pytest.raises(WorkerFailedError, match="no answer from rank 1 "):
            survivor.result()
    meetings.start([survivor], num_ranks=1)
    with pytest.raises(StateLostError, match="no trainer is left that holds 50% of the state"):
        survivor.result()


def test_where_nothing_is_cut_up_either_rank_goes_on_without_the_other(
    ranks: list[Rank], meetings: Meetings, model_path: str, expected: list[dict[str, float]]
) -> None:
    create(ranks, model_path, 0)
    meetings.regroup(ranks)
    call_all(ranks, "step", BATCHES[0])
    meetings.regroup(ranks[1:])
    assert_close(ranks[1].call("step", BATCHES[1]), expected[1])
