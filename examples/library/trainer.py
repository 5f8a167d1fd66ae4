"""The trainer alone: PPO on a batch made by hand, until the rewarded answers have become likelier than the others.

    python examples/library/trainer.py MODEL_FOLDER

Legend: B samples, R response tokens of each, A = B * R.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, create_trainer

NUM_SAMPLES, PROMPT_LENGTH, RESPONSE_LENGTH = 8, 4, 6
NUM_STEPS = 5


def make_batch(vocab_size: int) -> Batch:
    """Random answers to one prompt; every second one is rewarded. The log-probabilities are still to be filled in."""
    rng = np.random.default_rng(0)
    prompt = np.arange(4, 4 + PROMPT_LENGTH)
    responses_BR = rng.integers(4, vocab_size, size=(NUM_SAMPLES, RESPONSE_LENGTH))
    unknown_A = np.zeros(NUM_SAMPLES * RESPONSE_LENGTH, dtype=np.float32)
    return Batch(
        sample_ids=tuple(f"sample {number}" for number in range(NUM_SAMPLES)),
        group_ids=("the prompt",) * NUM_SAMPLES,
        prompt_lengths=np.full(NUM_SAMPLES, PROMPT_LENGTH, dtype=np.int32),
        response_lengths=np.full(NUM_SAMPLES, RESPONSE_LENGTH, dtype=np.int32),
        token_ids=np.concatenate([[*prompt, *response] for response in responses_BR]).astype(np.int32),
        loss_mask=np.ones(NUM_SAMPLES * RESPONSE_LENGTH, dtype=np.bool_),
        log_probs=unknown_A,
        behaviour_log_probs=unknown_A,
        weight_versions=np.zeros(NUM_SAMPLES * RESPONSE_LENGTH, dtype=np.int32),
        rewards=np.arange(NUM_SAMPLES, dtype=np.float32) % 2,
        finish_reasons=("stop",) * NUM_SAMPLES,
    )


def main(model_path: str) -> None:
    trainer = create_trainer(
        TorchTrainerConfig(learning_rate=1e-3, critic_learning_rate=1e-3),
        PPOConfig(),
        model_path=model_path,
        seed=0,
    )
    batch = make_batch(vocab_size=len(trainer.weights()["model.embed_tokens.weight"]))
    for _ in range(NUM_STEPS):
        log_probs_A = trainer.log_probs(batch)  # in a run, the engine gives them
        batch = replace(batch, log_probs=log_probs_A, behaviour_log_probs=log_probs_A)
        metrics = trainer.step(batch)
        by_sample_B = trainer.log_probs(batch).reshape(NUM_SAMPLES, RESPONSE_LENGTH).mean(axis=1)
        print(
            f"step {trainer.num_steps}: value loss {metrics['critic/vf_loss']:.3f}, mean log-probability of "
            f"rewarded answers {by_sample_B[1::2].mean():.3f}, of the others {by_sample_B[0::2].mean():.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
