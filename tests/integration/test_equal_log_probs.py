"""With ``trainer.deterministic``, engine and trainer give the same log-probabilities, bit for bit, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from trainer_samples import FAMILIES, random_batch, save_tiny_model

from rlserve.engine import Engine, EngineConfig, Request, SampleOutput, SamplingParams
from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, Trainer, create_trainer

DENSE = tuple(family for family in FAMILIES if not family.endswith("moe"))
CROWDED: dict[str, Any] = {"num_blocks": 11, "max_num_batched_tokens": 21, "max_num_sequences": 7}
"""Prompts are prefilled in chunks, and samples are preempted for want of blocks."""


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def trainer_of(path: str, temperature: float = 1.0, *, deterministic: bool = True, **changes: Any) -> Trainer:
    config = TorchTrainerConfig(deterministic=deterministic, learning_rate=1e-2, **changes)
    return create_trainer(config, PPOConfig(), model_path=path, seed=0, temperature=temperature)


def engine_of(path: str, **changes: Any) -> Engine:
    return Engine(path, EngineConfig(**{"dtype": "float32", "num_blocks": 256, "max_model_len": 128, **changes}))


def generate(engine: Engine, temperature: float) -> list[tuple[Request, SampleOutput]]:
    """Samples of 15 prompts, many of which begin alike, some of which are given to the engine when it is at work."""
    rng = np.random.default_rng(1)
    common = tuple(rng.integers(0, 32, 37).tolist())
    requests = [
        Request(
            id=str(index),
            prompt_token_ids=common[: 37 if index % 3 else 3] + tuple(rng.integers(0, 32, 1 + 2 * index).tolist()),
            sampling=SamplingParams(max_tokens=8 + 2 * index, temperature=temperature, seed=index, n=1 + index % 2),
        )
        for index in range(15)
    ]
    waiting, found = list(requests), []
    while waiting or engine.has_work:
        for request in waiting[:4]:
            engine.add(request)
        waiting = waiting[4:]
        found += engine.step()
    by_id = {request.id: request for request in requests}
    return [(by_id[output.request_id], sample) for output in found for sample in output.samples]


def tokens_of(request: Request, sample: SampleOutput) -> NDArray[np.int32]:
    return np.array(request.prompt_token_ids + sample.token_ids, dtype=np.int32)


def batch_of(samples: Sequence[tuple[Request, SampleOutput]]) -> Batch:
    number = len(samples)
    log_probs = np.concatenate([np.array(sample.log_probs, dtype=np.float32) for _, sample in samples])
    behaviour = np.concatenate([np.array(sample.behaviour_log_probs, dtype=np.float32) for _, sample in samples])
    return Batch(
        sample_ids=tuple(map(str, range(number))),
        group_ids=("0",) * number,
        prompt_lengths=np.array([len(request.prompt_token_ids) for request, _ in samples], dtype=np.int32),
        response_lengths=np.array([len(sample.token_ids) for _, sample in samples], dtype=np.int32),
        token_ids=np.concatenate(
            [[*request.prompt_token_ids, *sample.token_ids] for request, sample in samples]
        ).astype(np.int32),
        loss_mask=np.ones(len(log_probs), dtype=bool),
        log_probs=log_probs,
        behaviour_log_probs=behaviour,
        weight_versions=np.zeros(len(log_probs), dtype=np.int32),
        rewards=np.random.default_rng(0).normal(size=number).astype(np.float32),
        finish_reasons=("stop",) * number,
    )


@pytest.mark.parametrize("family", DENSE)
def test_all_families_agree_before_and_after_a_step(family: str, tmp_path: Path, num_threads: int) -> None:
    path = save_tiny_model(tmp_path, family)
    trainer, engine = trainer_of(path), engine_of(path)
    trainer.step(random_batch(0))
    engine.load_weights(1, trainer.weights())

    batch = batch_of(generate(engine, 1.0))

    assert np.array_equal(trainer.log_probs(batch), batch.log_probs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    "engine_changes",
    [{}, CROWDED, {"enable_prefix_caching": False, "block_size": 32}, {"block_size": 128, "overlap_scheduling": True}],
)
def test_it_does_not_matter_how_the_engine_computed_them(
    temperature: float, engine_changes: dict[str, Any], tmp_path: Path, num_threads: int
) -> None:
    path = save_tiny_model(tmp_path)
    engine = engine_of(path, **engine_changes)
    batch = batch_of(generate(engine, temperature))
    assert (engine.stats().num_preemptions > 0) == (engine_changes is CROWDED)
    for num_shards in (1, 4, 12):
        trainer = trainer_of(path, temperature, num_logical_shards=num_shards)
        assert np.array_equal(trainer.log_probs(batch), batch.log_probs)
        metrics = trainer.step(batch)
        assert metrics["training/log_prob_diff_max"] == 0.0
        assert metrics["training/behaviour_kl"] == 0.0
        assert metrics["training/importance_weight_mean"] == 1.0
        assert metrics["actor/ppo_kl"] == 0.0


def test_without_it_they_differ(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = batch_of(generate(engine_of(path), 1.0))
    found = trainer_of(path, deterministic=False).log_probs(batch)
    np.testing.assert_allclose(found, batch.log_probs, atol=1e-4)
    assert not np.array_equal(found, batch.log_probs)
