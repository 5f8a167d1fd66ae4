"""The prompts of a run: an endless, reshuffled, resumable stream of tokenised prompt groups."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlserve.errors import DataError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.groups import Message, PromptGroup
from rlserve.rollout.rows import PromptRow, PromptRows, load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROMPT_TOO_LONG = "prompt_too_long"
PROMPT_EMPTY = "prompt_empty"


class PromptEncoder:
    """Turns a prompt's text into token ids."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, apply_chat_template: bool, max_prompt_tokens: int
    ) -> None:
        """
        Raises:
            DataError: a chat template is asked for, and the tokenizer has none.
        """
        if apply_chat_template and tokenizer.chat_template is None:
            raise DataError("data.apply_chat_template is on, but the tokenizer has no chat template; turn it off")
        self._tokenizer = tokenizer
        self._apply_chat_template = apply_chat_template
        self._max_prompt_tokens = max_prompt_tokens

    def encode(self, rendered: str) -> tuple[int, ...]:
        """Token ids of a rendered prompt. The special tokens around it come from the chat template, or, where there is
        none, from the tokenizer."""
        return tuple(self._tokenizer(rendered, add_special_tokens=not self._apply_chat_template).input_ids)

    def _render(self, messages: tuple[Message, ...]) -> str:
        text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return text

    def group(self, row: PromptRow, *, group_id: str, position: int) -> PromptGroup:
        """The prompt group of a row; one that cannot be used says why in ``drop_reason``."""
        messages = ({"role": "user", "content": row.prompt},) if self._apply_chat_template else None
        rendered = row.prompt if messages is None else self._render(messages)
        token_ids = self.encode(rendered)
        return PromptGroup(
            id=group_id,
            position=position,
            row=row.row,
            prompt_text=row.prompt,
            prompt_token_ids=token_ids,
            answer=row.answer,
            prompt_rendered=rendered,
            messages=messages,
            columns=row.columns,
            drop_reason=self._drop_reason(token_ids),
        )

    def _drop_reason(self, token_ids: tuple[int, ...]) -> str | None:
        if not token_ids:
            return PROMPT_EMPTY
        return PROMPT_TOO_LONG if len(token_ids) > self._max_prompt_tokens else None


class PromptSource:
    """Hands out the rows of the training data, epoch after epoch.

    The order of an epoch is a function of (seed, epoch), so the position, one number, is all there is to save.
    """

    def __init__(self, rows: PromptRows, encoder: PromptEncoder, *, seed: int, shuffle: bool) -> None:
        self._rows = rows
        self._encoder = encoder
        self._seed = seed
        self._shuffle = shuffle
        self._position = 0
        self._order: tuple[int, NDArray[np.int64]] | None = None  # the epoch used last and its order

    @property
    def num_prompts(self) -> int:
        """Prompts of one epoch."""
        return len(self._rows)

    @property
    def position(self) -> int:
        """How many prompts were handed out."""
        return self._position

    def next(self) -> PromptGroup:
        """The next prompt group. There is always one."""
        group = self._group_at(self._position)
        self._position += 1
        return group

    def get(self, group_id: str, *, position: int) -> PromptGroup:
        """A group that was handed out before: one that the ledger calls live after a resume.

        Raises:
            DataError: another prompt is at that position now, so the data has changed.
        """
        group = self._group_at(position)
        if group.id != group_id:
            raise DataError(
                f"the run cannot be resumed on these prompts: row {group.row} is where prompt {group_id} was"
            )
        return group

    def _group_at(self, position: int) -> PromptGroup:
        epoch, index = divmod(position, len(self._rows))
        row = self._rows[int(self._epoch_order(epoch)[index])]
        return self._encoder.group(row, group_id=f"{epoch}:{row.row}", position=position)

    def snapshot(self) -> dict[str, Any]:
        """The position as plain data for a checkpoint (JSON)."""
        return {"position": self._position, "num_prompts": len(self._rows), "seed": self._seed}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on where ``snapshot`` was taken.

        Raises:
            DataError: the data has another number of prompts than then, or the seed is another: positions would
                name other prompts.
        """
        for key, now in (("num_prompts", len(self._rows)), ("seed", self._seed)):
            if snapshot[key] != now:
                raise DataError(
                    f"the run cannot be resumed on these prompts: {key} was {snapshot[key]} and is now {now}"
                )
        self._position = snapshot["position"]

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """[num_prompts] the rows of an epoch in the order in which they are handed out."""
        if self._order is None or self._order[0] != epoch:
            num_prompts = len(self._rows)
            order = (
                np.random.default_rng((self._seed, epoch)).permutation(num_prompts)
                if self._shuffle
                else np.arange(num_prompts)
            )
            self._order = (epoch, order)
        return self._order[1]


def load_prompts(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, max_prompt_tokens: int
) -> tuple[PromptSource, tuple[PromptGroup, ...]]:
    """The source of training prompts and the held-out prompt groups, which are disjoint.

    ``max_prompt_tokens`` is the limit in force: the config's, or the model's length less the answer's. Held-out
    prompts over it are left out, with a warning.

    Raises:
        DataError: see ``load_rows``; or no prompt is short enough.
    """
    train, held_out = load_rows(config)
    encoder = PromptEncoder(
        tokenizer, apply_chat_template=config.apply_chat_template, max_prompt_tokens=max_prompt_tokens
    )

    def groups(rows: PromptRows) -> Iterator[PromptGroup]:
        for index in range(len(rows)):
            row = rows[index]
            yield encoder.group(row, group_id=f"held_out:{row.row}", position=index)

    if all(group.drop_reason for group in groups(train)):
        raise DataError(_none_usable(config.path, "prompt", max_prompt_tokens))
    usable = tuple(group for group in groups(held_out) if group.drop_reason is None)
    if not usable:
        raise DataError(_none_usable(config.held_out_path or config.path, "held-out prompt", max_prompt_tokens))
    if len(usable) < len(held_out):
        logger.warning(
            "%d of %d held-out prompts are empty or longer than %d tokens and left out",
            len(held_out) - len(usable),
            len(held_out),
            max_prompt_tokens,
        )
    return PromptSource(train, encoder, seed=seed, shuffle=config.shuffle), usable


def _none_usable(path: str, what: str, max_prompt_tokens: int) -> str:
    return (
        f"{path}: every {what} is empty or longer than {max_prompt_tokens} tokens; "
        f"raise data.max_prompt_tokens, or rollout.engine.max_model_len"
    )
