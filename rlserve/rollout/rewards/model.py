"""A reward that is a model: Hugging Face sequence classification with one label, whose logit is the reward.

Legend: B samples of one forward pass, T tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlserve.errors import ModelError, RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import TRUNCATED, Reward, RewardSample, Score
from rlserve.rollout.tokenizer_loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_SAMPLES_PER_PASS = 16
"""Bounds the memory of one forward pass."""


class ModelReward(Reward):
    """Scores the text that ``ModelText`` makes of prompt and answer."""

    def __init__(self, config: RewardConfig) -> None:
        """
        Raises:
            RewardError: there is no such model, or it cannot be used: see ``check_model``.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        model_config = check_model(config)
        self._path = path = model_path(config)
        self._device = torch.device(config.model_device)
        self._text = ModelText(config)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                path, config=model_config, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise RewardError(f"reward.model_path={path}: cannot be loaded: {error}") from error
        # The model takes its logit at the last token that is not padding, so no text may end in it.
        text_config = model.config.get_text_config()
        if text_config.pad_token_id is None:
            text_config.pad_token_id = _filler(self._text.tokenizer)
        self._pad_token_id: int = text_config.pad_token_id
        self._max_length: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
        self._model: Any = model.to(self._device).eval()

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """The model's logit of each sample."""
        scores: list[Score] = []
        for start in range(0, len(samples), MAX_SAMPLES_PER_PASS):
            scores += self._score_pass(samples[start : start + MAX_SAMPLES_PER_PASS])
        return scores

    def _score_pass(self, samples: Sequence[RewardSample]) -> list[Score]:
        import torch

        token_ids = [self._text.token_ids(sample) for sample in samples]
        kept = [ids if self._max_length is None else ids[-self._max_length :] for ids in token_ids]  # the end counts
        longest = max(len(ids) for ids in kept)
        input_ids = torch.tensor([ids + [self._pad_token_id] * (longest - len(ids)) for ids in kept])  # [B, T]
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in kept])  # [B, T]
        with torch.inference_mode():
            logits = self._model(
                input_ids=input_ids.to(self._device), attention_mask=mask.to(self._device)
            ).logits  # [B, 1]
        return [
            self._read(sample, reward, truncated=len(left) < len(ids))
            for sample, reward, left, ids in zip(samples, logits[:, 0].float().tolist(), kept, token_ids, strict=True)
        ]

    def _read(self, sample: RewardSample, reward: float, *, truncated: bool) -> Score:
        if not math.isfinite(reward):
            return Score(error=f"reward model {self._path} gave {reward} on prompt {sample.id}")
        return Score(value=reward, parts={TRUNCATED: float(truncated)})


class ModelText:
    """What a reward model reads: a conversation in its own chat template, or prompt and answer one after the other.

    Either ends in the end token where the answer has ended by itself, as the texts did that the model was trained on.
    """

    def __init__(self, config: RewardConfig) -> None:
        """``config.apply_chat_template`` must be decided: see ``check_reward_model``."""
        self.tokenizer: Any = load_tokenizer(model_path(config))
        self._apply_chat_template = bool(config.apply_chat_template)

    def token_ids(self, sample: RewardSample) -> list[int]:
        """The tokens that the model reads."""
        if self._apply_chat_template:
            return self._encode(self._conversation(sample), add_special_tokens=False)
        end = self.tokenizer.eos_token or ""
        text = sample.prompt + sample.response
        return self._encode(text + end if sample.finished and not text.endswith(end) else text, add_special_tokens=True)

    def _conversation(self, sample: RewardSample) -> str:
        prompt = [dict(message) for message in sample.messages or ({"role": "user", "content": sample.prompt},)]
        whole = [*prompt, {"role": "assistant", "content": sample.response}]
        if sample.finished or not sample.response.strip():
            return str(self.tokenizer.apply_chat_template(whole, tokenize=False))
        try:
            return str(self.tokenizer.apply_chat_template(whole, tokenize=False, continue_final_message=True))
        except ValueError:  # a template that rewrites answers does not say where one ends
            return str(self.tokenizer.apply_chat_template(whole, tokenize=False))

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)


def _filler(tokenizer: Any) -> int:
    """A token to pad with, which ends no text."""
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    return next(
        token_id for token_id in (*special, 0, 1) if token_id is not None and token_id != tokenizer.eos_token_id
    )


def model_path(config: RewardConfig) -> str:
    """The model's folder, ``~`` expanded, or its name on the hub."""
    assert config.model_path is not None, "the reward is a model"
    return str(Path(config.model_path).expanduser()) if config.model_path.startswith("~") else config.model_path


def check_model(config: RewardConfig) -> PretrainedConfig:
    """The configuration of the reward model, found without loading its weights.

    Raises:
        RewardError: there is no model, it has more than one label, or no chat template where it must.
    """
    from transformers import AutoConfig

    path = model_path(config)
    if path.startswith((".", "/")) and not (Path(path) / "config.json").is_file():
        raise RewardError(f"reward.model_path={path}: not a model's folder: it has no config.json")
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RewardError(f"reward.model_path={path}: no model can be found there: {error}") from error
    if found.num_labels != 1:
        raise RewardError(f"reward.model_path={path}: must have one label, but has {found.num_labels}")
    if config.apply_chat_template and not has_chat_template(config):
        raise RewardError(f"reward.apply_chat_template=true: the tokenizer of {path} has no chat template")
    return found


def has_chat_template(config: RewardConfig) -> bool:
    """Whether the reward model's tokenizer has a chat template.

    Raises:
        RewardError: there is no tokenizer.
    """
    try:
        return bool(load_tokenizer(model_path(config)).chat_template)
    except ModelError as error:
        raise RewardError(f"reward.model_path={model_path(config)}: {error}") from error
