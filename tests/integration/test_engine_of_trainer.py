"""What a trainer calls its weights is what an engine calls them, and both give the same log-probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trainer_samples import FAMILIES, random_batch, save_tiny_model

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams
from rlserve.engine.models.factory import FAMILIES as ENGINE_FAMILIES
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.backends.pytorch.models import SUPPORTED_ARCHITECTURES


def test_the_trainer_trains_what_the_engine_runs() -> None:
    assert set(SUPPORTED_ARCHITECTURES) == set(ENGINE_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_weights_reach_the_engine_under_the_same_names(family: str, tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, family)
    trainer = create_trainer(TorchTrainerConfig(learning_rate=1e-2), PPOConfig(), model_path=path, seed=0)
    engine = Engine(path, EngineConfig(dtype="float32", block_size=4, num_blocks=64))
    trainer.step(random_batch(0))

    engine.load_weights(1, trainer.weights())

    assert fingerprint(engine.named_weights()) == fingerprint(trainer.weights().items())
    request = Request(id="0", prompt_token_ids=(3, 1, 4, 1, 5, 9), sampling=SamplingParams(max_tokens=20, seed=3))
    engine.add(request)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    sample = outputs[0].samples[0]
    batch = Batch(
        sample_ids=("0",),
        group_ids=("0",),
        prompt_lengths=np.array([len(request.prompt_token_ids)], dtype=np.int32),
        response_lengths=np.array([len(sample.token_ids)], dtype=np.int32),
        token_ids=np.array(request.prompt_token_ids + sample.token_ids, dtype=np.int32),
        loss_mask=np.ones(len(sample.token_ids), dtype=bool),
        log_probs=np.array(sample.log_probs, dtype=np.float32),
        behaviour_log_probs=np.array(sample.behaviour_log_probs, dtype=np.float32),
        weight_versions=np.ones(len(sample.token_ids), dtype=np.int32),
        rewards=np.zeros(1, dtype=np.float32),
        finish_reasons=("stop",),
    )
    np.testing.assert_allclose(trainer.log_probs(batch), sample.log_probs, atol=1e-4)
