"""The prompts and tools that an environment of the verifiers package brings with it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from rlserve.config.tree import RunConfig
from rlserve.errors import ConfigurationError, Problem
from rlserve.rollout.config import DataConfig
from rlserve.rollout.environments.verifiers.data import VerifiersData, export_data
from rlserve.rollout.environments.verifiers.tool_calls import MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def data_of_verifiers(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> DataConfig:
    """The data configuration with the environment's files, and with its tools for the chat template.

    Raises:
        EnvironmentFailedError: the environment cannot be loaded or run here.
        ConfigurationError: the model's chat template has no tools, or another form of calling them.
    """
    found, data, limit = export_data(config.environment), config.data, config.environment.max_turns
    if limit < found.max_turns:
        logger.warning(
            "environment.max_turns=%d cuts conversations of %s, which may have %d turns",
            limit,
            config.environment.name,
            found.max_turns,
        )
    held_out = str(found.held_out) if found.held_out is not None else None
    template_arguments = {**data.chat_template_kwargs, **({"tools": found.tools} if found.tools else {})}
    _check_tools(config, found, tokenizer)
    return replace(
        data,
        path=str(found.train),
        held_out_path=data.held_out_path or held_out,
        chat_template_kwargs=template_arguments,
    )


def _check_tools(config: RunConfig, found: VerifiersData, tokenizer: PreTrainedTokenizerBase) -> None:
    template = str(tokenizer.chat_template)
    if not found.tools or ("tools" in template and MARK in template):
        return
    names = ", ".join(tool["function"]["name"] for tool in found.tools)
    message = (
        f"{config.environment.name} has tools ({names}), and the chat template of this model does not ask for calls as "
        f"{MARK}{{...}}</tool_call>, the form that is read: take a model such as Qwen3, or change its template"
    )
    raise ConfigurationError([Problem("model.path", message)])
