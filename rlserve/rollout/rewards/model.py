"""A reward that is a model: Hugging Face sequence classification with one label, whose logit is the reward.

Legend: B samples of one forward pass, T tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlserve.errors import RewardError
from rlserve.rollout.rewards.base import Reward, RewardSample

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_SAMPLES_PER_PASS = 16
"""Bounds the memory of one forward pass."""


class ModelReward(Reward):
    """Scores the text of prompt and response, as they are, without a chat template."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            RewardError: there is no such model at ``path``, or it has more than one label.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        config = check_model(path)
        self._path = path
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(path, config=config, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise RewardError(f"reward.model_path={path}: cannot be loaded: {error}") from error
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._tokenizer.pad_token_id is None:
            raise RewardError(f"reward.model_path={path}: its tokenizer has neither a padding nor an end token")
        model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self._tokenizer.truncation_side = "left"  # of a text that is too long, the end of the answer counts
        self._max_length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._model: Any = model.to(self._device).eval()

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """The model's logit of each sample."""
        rewards: list[float] = []
        for start in range(0, len(samples), MAX_SAMPLES_PER_PASS):
            rewards += self._score_pass(samples[start : start + MAX_SAMPLES_PER_PASS])
        return rewards

    def _score_pass(self, samples: Sequence[RewardSample]) -> list[float]:
        import torch

        inputs = self._tokenizer(
            [sample.prompt + sample.response for sample in samples],
            padding=True,
            truncation=self._max_length is not None,
            max_length=self._max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = self._model(
                input_ids=inputs["input_ids"].to(self._device),  # [B, T]
                attention_mask=inputs["attention_mask"].to(self._device),  # [B, T]
            ).logits  # [B, 1]
        rewards: list[float] = logits[:, 0].float().tolist()
        for sample, reward in zip(samples, rewards, strict=True):
            if not math.isfinite(reward):
                raise RewardError(f"reward model {self._path} gave {reward} on prompt {sample.id}")
        return rewards


def check_model(path: str) -> PretrainedConfig:
    """The configuration of the reward model, found without loading its weights.

    Raises:
        RewardError: there is no model at ``path``, or it has more than one label.
    """
    from transformers import AutoConfig

    if path.startswith((".", "/", "~")) and not (Path(path).expanduser() / "config.json").is_file():
        raise RewardError(f"reward.model_path={path}: not a model's folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RewardError(f"reward.model_path={path}: no model can be found there: {error}") from error
    if config.num_labels != 1:
        raise RewardError(f"reward.model_path={path}: must have one label, but has {config.num_labels}")
    return config
