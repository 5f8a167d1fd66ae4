"""The data of a supervised run, read, checked and tokenised before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.factory import open_table
from rlserve.rollout.prompt_rows import DEFAULT_NUM_HELD_OUT, set_aside
from rlserve.supervised.base import RowReader
from rlserve.supervised.completions import CompletionReader
from rlserve.supervised.preferences import PreferenceReader
from rlserve.supervised.source import SupervisedSource
from rlserve.supervised.text_encoder import TextEncoder
from rlserve.supervised.tokenised_rows import TokenisedRows
from rlserve.trainers.algorithms.supervised.config import RewardModelConfig, SFTConfig, SupervisedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_source(
    config: DataConfig, algorithm: SupervisedConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, model_length: int
) -> SupervisedSource:
    """The rows to train on and the held-out ones; ``model_length`` is the most tokens that the model takes.

    Raises:
        DataError: the data cannot be read, a row cannot be used, or there are too few.
    """
    reader = _reader(config, algorithm, tokenizer)
    max_length = min(config.max_length or model_length, model_length)
    table = open_table(config.path, config.split)
    if config.held_out_path is None:
        train_numbers, held_out_numbers = set_aside(len(table), config)
        held_out_table, held_out_path = table, config.path
    else:
        held_out_table, held_out_path = open_table(config.held_out_path, config.held_out_split), config.held_out_path
        num_held_out = min(config.num_held_out or DEFAULT_NUM_HELD_OUT, len(held_out_table))
        held_out_numbers, train_numbers = np.arange(num_held_out), np.arange(len(table))
    return SupervisedSource(
        TokenisedRows(config.path, table, train_numbers.tolist(), reader, max_length=max_length),
        held_out=TokenisedRows(held_out_path, held_out_table, held_out_numbers.tolist(), reader, max_length=max_length),
        seed=seed,
        shuffle=config.shuffle,
        batch_size=algorithm.batch_size,
    )


def _reader(config: DataConfig, algorithm: SupervisedConfig, tokenizer: PreTrainedTokenizerBase) -> RowReader:
    match algorithm:
        case SFTConfig():
            encoder = TextEncoder(tokenizer, config, learns_prompts=not algorithm.completion_only_loss)
            return CompletionReader(encoder, config)
        case RewardModelConfig():
            return PreferenceReader(tokenizer, config)
    raise AssertionError(f"{type(algorithm).__name__} has no reader of its data")
