"""With which tokens an answer ends: those of the model's files, the tokenizer's own, and the one that the chat template
puts after an assistant's turn.

A model whose ``config.json`` names another token than the one it was taught to end a turn with would never stop, and
every answer would be cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlserve.rollout.config import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ANSWER = "answer"


@dataclass(frozen=True, kw_only=True)
class EndTokens:
    """Token ids, each once."""

    of_model: tuple[int, ...]
    """From ``generation_config.json`` or ``config.json``: the engine knows them."""
    added: tuple[int, ...]
    """Those that the engine must be told."""

    @property
    def all(self) -> tuple[int, ...]:
        """All of them."""
        return self.of_model + self.added


def find_end_tokens(
    tokenizer: PreTrainedTokenizerBase, config: DataConfig, *, of_model: tuple[int, ...], vocab_size: int
) -> EndTokens:
    """The end tokens of a run. Says so where the tokenizer or its template adds one, and warns where there is none."""
    known = tuple(token for token in of_model if token < vocab_size)
    added: dict[int, str] = {}
    for token, origin in _candidates(tokenizer, config):
        if token in known or token in added:
            continue
        if token >= vocab_size:
            logger.warning("%s is %d, which is beyond the model's vocabulary of %d", origin, token, vocab_size)
            continue
        added[token] = origin
    for token, origin in added.items():
        named = ", ".join(describe(tokenizer, other) for other in known) or "none"
        logger.info("answers also end at %s, %s; the model's files name %s", describe(tokenizer, token), origin, named)
    if not known and not added:
        logger.warning(
            "neither the model's files nor the tokenizer name an end token: every answer runs to rollout.max_tokens; "
            "set eos_token_id in generation_config.json, or rollout.stop"
        )
    return EndTokens(of_model=known, added=tuple(added))


def describe(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as messages show it: ``'<|im_end|>' (151645)``."""
    return f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})"


def _candidates(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> Iterator[tuple[int, str]]:
    if tokenizer.eos_token_id is not None:
        yield tokenizer.eos_token_id, "the tokenizer's end of text"
    turn_end = _turn_end(tokenizer, config) if config.apply_chat_template else None
    if turn_end is not None:
        yield turn_end, "the end of a turn in the chat template"


def _turn_end(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> int | None:
    """The special token that follows an assistant's words; None where the template ends a turn with plain text."""
    from jinja2 import TemplateError

    conversation = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, **config.chat_template_kwargs)
    except (TemplateError, ValueError, TypeError):  # what the template does with the data itself is checked elsewhere
        return None
    _, found, rest = text.rpartition(_ANSWER)
    token_ids = tokenizer(rest.lstrip(), add_special_tokens=False).input_ids if found else []
    return token_ids[0] if token_ids and token_ids[0] in tokenizer.added_tokens_decoder else None
