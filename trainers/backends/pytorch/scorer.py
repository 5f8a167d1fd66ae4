"""A model that scores: transformers' sequence classification with one label, on the backbone of a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from rlserve.errors import ModelError
from rlserve.trainers.backends.pytorch.models import SUPPORTED_ARCHITECTURES, check_complete, read_config

_LANGUAGE_MODEL, _SCORER = "ForCausalLM", "ForSequenceClassification"


def load_scorer(model_path: str, *, load_weights: bool, seed: int) -> Any:
    """The model in float32, dropout off. A language model gets a new head, drawn by ``seed``; one that scores already
    keeps its own.

    Raises:
        ModelError: the path is no model, the architecture is not supported, or weights are missing.
    """
    config, architecture = read_config(model_path)
    if architecture.replace(_SCORER, _LANGUAGE_MODEL) not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"{model_path!r} has architecture {architecture}, which cannot learn to score; supported: "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if architecture.endswith(_SCORER) and config.num_labels != 1:
        raise ModelError(f"{model_path!r} must have one label to be a reward model, and has {config.num_labels}")
    config.num_labels = 1
    config.pad_token_id = _padding_of(config)
    if not load_weights:
        with no_init_weights():
            scorer = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        return scorer.eval()
    try:
        scorer, report = AutoModelForSequenceClassification.from_pretrained(
            model_path, config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except OSError as error:
        raise ModelError(f"{model_path!r} is no model that can be trained: {error}") from error
    has_new_head = architecture.endswith(_LANGUAGE_MODEL)
    check_complete(model_path, report, new={"score.weight"} if has_new_head else frozenset())
    if has_new_head:
        _draw(scorer.score, seed)
    return scorer.eval()


def _draw(head: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, 1.0 / (head.in_features + 1), generator=generator)


def _padding_of(config: Any) -> int:
    """A token that ends no text: transformers scores at the last token that is another."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    candidates = (config.pad_token_id, config.bos_token_id, 0, 1, 2)
    return next(token for token in candidates if token is not None and token not in ends)
