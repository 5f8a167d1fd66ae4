"""What is found and checked before a run that learns from a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.config.tree import RunConfig
from rlserve.controller.preparation.model_folder import find_model_folder
from rlserve.engine.models.checkpoint import check_weights
from rlserve.engine.models.factory import read_model_spec
from rlserve.rollout.config import DataConfig
from rlserve.rollout.tokenizer_loading import load_tokenizer
from rlserve.supervised.loading import load_source
from rlserve.supervised.source import SupervisedSource
from rlserve.tasks import is_builtin, resolve_data
from rlserve.tasks.preferences.resolve import resolve_preferences
from rlserve.trainers.algorithms.supervised.config import RewardModelConfig, SupervisedConfig
from rlserve.weights.canary import CanaryPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedPreparation:
    """Everything that the controller needs besides the configuration."""

    model_path: str
    tokenizer: PreTrainedTokenizerBase
    source: SupervisedSource

    @property
    def canary(self) -> CanaryPrompts:
        """No replica has to agree with a trainer."""
        return ()


def prepare_supervised(config: RunConfig, on_status: Callable[[str], None]) -> SupervisedPreparation:
    """Find the model, load the tokenizer, and read and tokenise all of the data.

    Raises:
        UserError: one of them cannot be used; nothing was started.
    """
    model_path = find_model_folder(config.model.path, on_status)
    on_status("reading the data")
    return prepare_data(config, model_path)


def prepare_data(config: RunConfig, model_path: str) -> SupervisedPreparation:
    """Of a model that is in a folder already.

    Raises:
        UserError: model, tokenizer or data cannot be used.
    """
    assert isinstance(config.algorithm, SupervisedConfig)
    check_weights(Path(model_path))
    tokenizer = load_tokenizer(config.model.tokenizer_path or model_path)
    source = load_source(
        _data(config.data, config.algorithm),
        config.algorithm,
        tokenizer,
        seed=config.seed,
        model_length=read_model_spec(model_path).max_position,
    )
    return SupervisedPreparation(model_path=model_path, tokenizer=tokenizer, source=source)


def with_steps(config: RunConfig, source: SupervisedSource) -> RunConfig:
    """The configuration with the steps that so many passes over the data take, where those were asked for."""
    algorithm = config.algorithm
    if not isinstance(algorithm, SupervisedConfig) or algorithm.num_train_epochs is None:
        return config
    return replace(config, num_steps=source.num_steps(algorithm.num_train_epochs))


def _data(config: DataConfig, algorithm: SupervisedConfig) -> DataConfig:
    """Those of a built-in task are in files; its answers are its completions."""
    if not is_builtin(config.path):
        return config
    resolve = resolve_preferences if isinstance(algorithm, RewardModelConfig) else resolve_data
    train, held_out = resolve(config.path)
    return replace(config, path=str(train), held_out_path=str(held_out), completion_field="answer")
