"""What a reward model learned to score, the reward scores alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import ALPHABET, write_model

from rlserve.rollout.config import DataConfig, RewardConfig
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.model import ModelReward
from rlserve.supervised.loading import load_source
from rlserve.tasks.character_tokenizer import character_tokenizer
from rlserve.trainers import RewardModelConfig, TorchTrainerConfig, create_trainer

ROWS = [("1+1=", "2", "3"), ("12+1=", "13", "oh"), ("7+7=", "fourteen", "1")]


def sample(prompt: str, response: str) -> RewardSample:
    return RewardSample(
        id=prompt,
        prompt=prompt,
        response=response,
        answer=None,
        finished=True,
        prompt_token_ids=(),
        response_token_ids=(),
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_trainer_and_reward_score_alike(family: str, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "pairs.jsonl", character_tokenizer(ALPHABET)
    path.write_text(
        "".join(f'{{"prompt": "{prompt}", "chosen": "{good}", "rejected": "{bad}"}}\n' for prompt, good, bad in ROWS)
    )
    algorithm = RewardModelConfig(batch_size=3)
    data = DataConfig(path=str(path), held_out_path=str(path))
    batch = load_source(data, algorithm, tokenizer, seed=0, model_length=64).held_out()
    trainer = create_trainer(
        TorchTrainerConfig(learning_rate=1e-2),
        algorithm,
        model_path=str(write_model(tmp_path / "model", family)),
        seed=0,
        device="cpu",
    )
    for _ in range(3):
        trainer.step(batch)
    trainer.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    reward = ModelReward(RewardConfig(model_path=str(tmp_path / "judge"), apply_chat_template=False))
    scores = reward.score([sample(prompt, answer) for prompt, *answers in ROWS for answer in answers])
    assert [score.value for score in scores] == pytest.approx(trainer.values(batch).tolist(), abs=1e-5)
