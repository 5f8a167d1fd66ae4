"""``sharding=full`` on real processes: as exact as a trainer that holds everything, and what becomes of its shards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_ranks import Meetings, Rank, call_all, create_all, running_ranks
from trainer_samples import random_batch, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.engine.models.checkpoint import Checkpoint
from rlserve.errors import NonFiniteLossError, StateLostError, UserError, WorkerFailedError
from rlserve.trainers import AlgorithmConfig, GRPOConfig, PPOConfig, TorchTrainerConfig

CONFIG = TorchTrainerConfig(
    sharding="full",
    learning_rate=1e-3,
    critic_learning_rate=1e-3,
    critic_head_learning_rate=3e-3,
    weight_decay=0.01,
    timeout_s=60.0,
)
WHOLE = dataclasses.replace(CONFIG, sharding="optimizer", num_logical_shards=3)
ALGORITHM = PPOConfig(
    num_mini_batches=2, kl_coefficient=0.05, target_kl=0.02, kl_horizon=50.0, entropy_coefficient=0.01
)


def on_one_trunk(config: TorchTrainerConfig) -> TorchTrainerConfig:
    return dataclasses.replace(config, critic_trunk="shared")


BATCHES = [random_batch(seed, num_samples=12) for seed in range(6)]
LOSSES = (
    "actor/pg_loss",
    "critic/vf_loss",
    "actor/entropy",
    "actor/grad_norm",
    "critic/grad_norm",
    "critic/kl_coefficient",
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def three_ranks() -> Iterator[list[Rank]]:
    with running_ranks(3) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def meetings() -> Meetings:
    return Meetings()


def form(
    ranks: list[Rank],
    meetings: Meetings,
    model_path: str,
    config: TorchTrainerConfig = CONFIG,
    algorithm: AlgorithmConfig = ALGORITHM,
) -> None:
    """One group, of which rank 0 has read the model."""
    call_all(ranks, "forget")
    create_all(ranks, config, algorithm, model_path)
    meetings.regroup(ranks)


@pytest.mark.parametrize("critic_trunk", ["separate", "shared"])
def test_steps_have_the_losses_of_a_trainer_that_holds_everything(
    three_ranks: list[Rank], meetings: Meetings, model_path: str, critic_trunk: Any
) -> None:
    algorithm = dataclasses.replace(ALGORITHM, num_mini_batches=1)
    batches = [random_batch(seed, num_samples=6) for seed in range(10)]
    whole, pair = three_ranks[0], three_ranks[1:]
    held, cut_up = (dataclasses.replace(config, critic_trunk=critic_trunk) for config in (WHOLE, CONFIG))
    form([whole], meetings, model_path, held, algorithm)
    expected = [whole.call("step", batch) for batch in batches]
    form([whole], meetings, model_path, cut_up, algorithm)
    form(pair, meetings, model_path, cut_up, algorithm)
    for batch, wanted in zip(batches, expected, strict=True):
        for found in (*call_all([whole], "step", batch), *call_all(pair, "step", batch)):
            assert {name: found[name] for name in LOSSES} == pytest.approx(
                {name: wanted[name] for name in LOSSES}, rel=2e-3, abs=2e-4
            )


@pytest.mark.parametrize("tied", [True, False])
def test_scores_and_states_are_those_of_a_trainer_that_holds_everything(
    three_ranks: list[Rank], meetings: Meetings, tmp_path: Path, tied: bool
) -> None:
    """On three ranks no parameter can be cut evenly."""
    path = save_tiny_model(tmp_path / "model", tied=tied)
    form(three_ranks[:1], meetings, path, WHOLE)
    three_ranks[0].call("step", BATCHES[0])
    expected = three_ranks[0].call("state")
    wanted = [np.frombuffer(each, np.float32) for each in three_ranks[0].call("scores", BATCHES[1])]
    form(three_ranks, meetings, path)
    call_all(three_ranks, "step", BATCHES[0])
    for state in call_all(three_ranks, "state"):
        assert state.keys() == expected.keys()
        for name, array in state.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    for scores in call_all(three_ranks, "scores", BATCHES[1]):
        for found, each in zip(scores, wanted, strict=True):
            np.testing.assert_allclose(np.frombuffer(found, np.float32), each, rtol=1e-3, atol=1e-4)


def test_ranks_have_unlike_numbers_of_passes_and_some_no_samples(
    three_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    algorithm = GRPOConfig(kl_loss_coefficient=0.1)
    config = dataclasses.replace(CONFIG, ppo_max_token_len_per_gpu=30)
    batches = [random_batch(1, num_samples=2), random_batch(2, num_samples=9)]
    batches[1].loss_mask[: batches[1].response_lengths[:3].sum()] = False
    form(three_ranks[:1], meetings, model_path, WHOLE, algorithm)
    expected = [three_ranks[0].call("step", batch) for batch in batches]
    form(three_ranks, meetings, model_path, config, algorithm)
    for batch, wanted in zip(batches, expected, strict=True):
        for found in call_all(three_ranks, "step", batch):
            assert {name: found[name] for name in ("actor/pg_loss", "actor/grad_norm")} == pytest.approx(
                {name: wanted[name] for name in ("actor/pg_loss", "actor/grad_norm")}, rel=1e-3, abs=1e-5
            )


@pytest.mark.parametrize("critic_trunk", ["separate", "shared"])
def test_shards_move_to_other_ranks_in_memory_with_the_same_bits(
    three_ranks: list[Rank], meetings: Meetings, model_path: str, critic_trunk: Any
) -> None:
    first, second, third = three_ranks
    config = dataclasses.replace(CONFIG, critic_trunk=critic_trunk)
    form([first, second], meetings, model_path, config)
    call_all([first, second], "step", BATCHES[0])
    (before,) = set(call_all([first, second], "digest"))
    third.call("forget")
    third.call("create", config, ALGORITHM, model_path, load_weights=False)
    meetings.regroup([first, second, third])
    assert call_all(three_ranks, "digest") == [before] * 3
    # Whoever leaves has what nobody else holds, and hands it over.
    meetings.start([first, second], num_ranks=2)
    for rank in (first, second):
        with pytest.raises(StateLostError, match=r"rank 2 of 3 is not there any more, and with trainer.sharding=full"):
            rank.result()
    meetings.regroup([second, first, third], num_leaving=1)
    third.call("leave")
    meetings.regroup([second, first])
    assert call_all([first, second], "digest") == [before] * 2
    call_all([first, second], "step", BATCHES[1])
    (before,) = set(call_all([first, second], "digest"))
    meetings.regroup([second, first], num_leaving=1)
    first.call("leave")
    meetings.regroup([second])
    assert second.call("digest") == before
    assert second.call("num_steps") == 2


def test_a_lost_rank_takes_its_shard_along(three_ranks: list[Rank], meetings: Meetings, model_path: str) -> None:
    survivor = three_ranks[0]
    with running_ranks(1) as [victim]:
        form([survivor, victim], meetings, model_path)
        call_all([survivor, victim], "step", BATCHES[0])
        survivor.start("step", BATCHES[1])
        victim.kill()
        with pytest.raises(WorkerFailedError, match="no answer from rank 1 "):
            survivor.result()
    meetings.start([survivor], num_ranks=1)
    with pytest.raises(StateLostError, match=r"rank 1 of 2 is not there any more.* is nowhere else"):
        survivor.result()


@pytest.mark.parametrize(
    ("written_by", "num_writers", "read_by", "num_readers"),
    [
        (CONFIG, 2, CONFIG, 3),
        (CONFIG, 2, WHOLE, 1),
        (WHOLE, 2, CONFIG, 2),
        (on_one_trunk(CONFIG), 3, on_one_trunk(WHOLE), 2),
    ],
    ids=["full-full", "full-optimizer", "optimizer-full", "shared-trunk"],
)
def test_a_checkpoint_loads_on_other_numbers_of_ranks_and_with_either_sharding(
    three_ranks: list[Rank],
    meetings: Meetings,
    model_path: str,
    tmp_path: Path,
    written_by: TorchTrainerConfig,
    num_writers: int,
    read_by: TorchTrainerConfig,
    num_readers: int,
) -> None:
    writers, readers = three_ranks[:num_writers], three_ranks[:num_readers]
    form(writers, meetings, model_path, written_by)
    call_all(writers, "step", BATCHES[0])
    (expected,) = set(call_all(writers, "digest"))
    call_all(writers, "copy_state")
    call_all(writers, "step", BATCHES[1])
    for writer in writers:
        writer.call("write_state", tmp_path)
    form(readers, meetings, model_path, read_by)
    call_all(readers, "load_files", tmp_path)
    assert call_all(readers, "digest") == [expected] * num_readers
    call_all(readers, "step", BATCHES[1])


def test_each_rank_has_a_part_of_the_policy_for_the_engines_and_all_parts_are_the_policy(
    three_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    ranks = three_ranks[:2]
    form(ranks, meetings, model_path)
    for batch in (None, BATCHES[0]):
        if batch is not None:
            call_all(ranks, "step", batch)
        state, _ = call_all(ranks, "state")
        first, second = (rank.call("weights") for rank in ranks)
        assert not first.keys() & second.keys()
        sizes = [sum(array.nbytes for array in part.values()) for part in (first, second)]
        assert abs(sizes[0] - sizes[1]) <= max(array.nbytes for array in (first | second).values())
        assert {f"policy.{name}" for name in first | second} == {name for name in state if name.startswith("policy.")}
        assert all(np.array_equal(array, state[f"policy.{name}"]) for name, array in (first | second).items())


@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("qwen3", False), ("qwen3_moe", False)])
def test_the_ranks_together_write_a_hugging_face_folder(
    three_ranks: list[Rank], meetings: Meetings, tmp_path: Path, family: str, tied: bool
) -> None:
    ranks, path = three_ranks[:2], save_tiny_model(tmp_path / "model", family, tied=tied)
    form(ranks, meetings, path)
    call_all(ranks, "step", BATCHES[0])
    call_all(ranks, "copy_state")
    expected = ranks[0].call("weights") | ranks[1].call("weights")
    folders = tmp_path / "saved", tmp_path / "checkpoint" / "policy"
    folders[0].mkdir()
    (folders[0] / "model.safetensors").write_text("of an earlier policy")
    for rank in reversed(ranks):
        rank.call("save_pretrained", folders[0])
        rank.call("write_state", folders[1].parent)
    for folder in folders:
        files = {file.name for file in folder.iterdir()}
        shards = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
        assert files == {"config.json", "generation_config.json", "model.safetensors.index.json", *shards}
        config, before = (json.loads(Path(place, "config.json").read_text()) for place in (folder, path))
        assert config == before
        written = {name: tensor.numpy() for name, tensor in Checkpoint(folder).tensors()}
        assert written.keys() == expected.keys()
        assert all(np.array_equal(array, expected[name]) for name, array in written.items())
        _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    scores = call_all(ranks, "log_probs", BATCHES[1])[0]
    form(ranks[:1], meetings, str(folders[0]), WHOLE)
    np.testing.assert_allclose(ranks[0].call("log_probs", BATCHES[1]), scores, atol=1e-5)


def test_layers_are_recomputed_and_computed_in_bfloat16(
    three_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    plain = dataclasses.replace(CONFIG, dtype="bfloat16")
    ranks = three_ranks[:2]
    form(ranks, meetings, model_path, plain)
    expected = call_all(ranks, "step", BATCHES[0])
    (digest,) = set(call_all(ranks, "digest"))
    form(ranks, meetings, model_path, dataclasses.replace(plain, activation_checkpointing=True))
    assert call_all(ranks, "step", BATCHES[0]) == expected
    assert set(call_all(ranks, "digest")) == {digest}
    form(ranks[:1], meetings, model_path, dataclasses.replace(WHOLE, dtype="bfloat16"))
    wanted = ranks[0].call("step", BATCHES[0])
    assert {name: expected[0][name] for name in LOSSES} == pytest.approx(
        {name: wanted[name] for name in LOSSES}, rel=5e-2, abs=1e-2
    )


def test_a_step_that_is_not_finite_and_a_trainer_that_sleeps_leave_no_trace(
    three_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    ranks = three_ranks[:2]
    form(ranks, meetings, model_path, dataclasses.replace(CONFIG, offload_optimizer=True))
    call_all(ranks, "step", BATCHES[0])
    (before,) = set(call_all(ranks, "digest"))
    bad = random_batch(3, num_samples=12)
    bad.rewards[0] = 3e38  # its square is too much for float32
    for rank in ranks:
        rank.start("step", bad)
    for rank in ranks:
        with pytest.raises(NonFiniteLossError):
            rank.result()
    assert set(call_all(ranks, "digest")) == {before}
    call_all(ranks, "sleep_and_wake")
    assert set(call_all(ranks, "digest")) == {before}
    call_all(ranks, "step", BATCHES[1])


def test_a_rank_that_raises_alone_stops_the_others_and_all_settle_the_step(
    three_ranks: list[Rank], meetings: Meetings, model_path: str
) -> None:
    """Before all have the gradient the step is taken back; after that it is completed."""
    ranks = three_ranks[:2]
    form(ranks, meetings, model_path)
    for batch in BATCHES[:3]:
        call_all(ranks, "step", batch)
    (expected,) = set(call_all(ranks, "digest"))
    form(ranks, meetings, model_path)
    call_all(ranks, "step", BATCHES[0])
    for where, batch, num_steps in (("_backward_passes", BATCHES[1], 1), ("complete_step", BATCHES[2], 3)):
        ranks[1].call("raise_in", where)
        for rank in ranks:
            rank.start("step", batch)
        for rank, error in zip(ranks, (WorkerFailedError, UserError), strict=True):
            with pytest.raises(error):
                rank.result()
        meetings.regroup(ranks)
        assert call_all(ranks, "num_steps") == [num_steps] * 2
        if num_steps == 1:
            call_all(ranks, "step", batch)
    assert set(call_all(ranks, "digest")) == {expected}
