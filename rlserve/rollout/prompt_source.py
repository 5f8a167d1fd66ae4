"""The prompts of a run: an endless, reshuffled, resumable stream of tokenised prompt groups."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlserve.errors import DataError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.epochs import EpochOrder
from rlserve.rollout.dataset.same_content import SourceContent
from rlserve.rollout.encoder import PROMPT_TOO_LONG, PromptEncoder
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.prompt_rows import DEFAULT_NUM_HELD_OUT, PromptRows, load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_NUM_MEASURED = 32
"""Prompts with the most characters, of which the one with the most tokens is taken for the longest of all."""


class PromptSource:
    """Hands out the rows of the training data, epoch after epoch.

    The order of an epoch is a function of (seed, epoch), so the position, one number, is all there is to save.
    """

    def __init__(
        self, rows: PromptRows, encoder: PromptEncoder, *, held_out: PromptRows, seed: int, shuffle: bool
    ) -> None:
        """``held_out`` is not handed out; a run is not resumed on others."""
        self._rows = rows
        self._content = SourceContent(
            seed=seed, train=rows, held_out=held_out, rows_are="prompts", row_is="prompt or answer"
        )
        self._encoder = encoder
        self._order = EpochOrder(len(rows), seed=seed, shuffle=shuffle)
        self._position = 0

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
        epoch, index = self._order.at(position)
        row = self._rows[index]
        return self._encoder.group(row, group_id=f"{epoch}:{row.row}", position=position)

    def snapshot(self) -> dict[str, Any]:
        """The position as plain data for a checkpoint (JSON), and what the prompts come down to."""
        return self._content.snapshot(self._position)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on where ``snapshot`` was taken.

        Raises:
            DataError: the data has other prompts or answers than then, or another order, or the seed is another:
                positions would name other prompts, and scores of held-out prompts could not be compared.
        """
        self._position = self._content.position_in(snapshot)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """The data of a run, checked and ready to be handed out."""

    source: PromptSource
    """Prompts to train on."""
    held_out: tuple[PromptGroup, ...]
    """Prompts to score the policy on."""
    longest: PromptGroup
    """The longest prompt that is not too long, as near as can be told without tokenising all."""


def load_prompts(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, max_prompt_tokens: int, prompts_per_step: int
) -> Prompts:
    """The training prompts and the held-out ones.

    ``max_prompt_tokens`` is the limit in force: the config's, or the model's length less the answer's. Held-out
    prompts over it are left out, with a warning.

    Raises:
        DataError: see ``load_rows``; or no prompt is short enough, or the chat template refuses one.
    """
    train, held_out = load_rows(config)
    encoder = PromptEncoder(tokenizer, config, max_prompt_tokens=max_prompt_tokens)
    for rows in (train, held_out):
        encoder.check_renders(rows.one_of_each_shape())
    if len(train) < prompts_per_step:
        logger.warning(
            "%s: %d prompts to train on are fewer than rollout.prompts_per_step=%d: each step trains on the same "
            "prompts several times; lower it, or bring more data",
            config.path,
            len(train),
            prompts_per_step,
        )
    usable_held_out = _usable_held_out(held_out, encoder, config.num_held_out or DEFAULT_NUM_HELD_OUT)
    return Prompts(
        source=PromptSource(train, encoder, held_out=held_out, seed=seed, shuffle=config.shuffle),
        held_out=usable_held_out,
        longest=max((_longest(train, encoder), *usable_held_out), key=lambda group: len(group.prompt_token_ids)),
    )


def _usable_held_out(rows: PromptRows, encoder: PromptEncoder, wanted: int) -> tuple[PromptGroup, ...]:
    """The first ``wanted`` held-out prompts that can be used."""
    usable: list[PromptGroup] = []
    num_seen = 0
    while num_seen < len(rows) and len(usable) < wanted:
        row = rows[num_seen]
        group = encoder.group(row, group_id=f"held_out:{row.row}", position=num_seen)
        num_seen += 1
        if group.drop_reason is None:
            usable.append(group)
    if not usable:
        raise DataError(_none_usable(rows.path, "held-out prompt", encoder.max_prompt_tokens))
    if len(usable) < num_seen:
        logger.warning(
            "%d of %d held-out prompts are empty or longer than %d tokens and left out",
            num_seen - len(usable),
            num_seen,
            encoder.max_prompt_tokens,
        )
    return tuple(usable)


def _longest(rows: PromptRows, encoder: PromptEncoder) -> PromptGroup:
    """The longest usable training prompt. Warns where longer ones will be dropped."""
    measured = [encoder.group(row, group_id=str(row.row), position=0) for row in rows.longest(_NUM_MEASURED)]
    num_tokens = max(len(group.prompt_token_ids) for group in measured)
    if num_tokens > encoder.max_prompt_tokens:
        logger.warning(
            "%s: prompts of more than %d tokens are left out and counted as %s; the longest has %d",
            rows.path,
            encoder.max_prompt_tokens,
            PROMPT_TOO_LONG,
            num_tokens,
        )
    usable = [group for group in measured if group.drop_reason is None]
    if usable:
        return max(usable, key=lambda group: len(group.prompt_token_ids))
    for index in range(len(rows)):  # all of the longest are too long
        group = encoder.group(rows[index], group_id=str(index), position=0)
        if group.drop_reason is None:
            return group
    raise DataError(_none_usable(rows.path, "prompt", encoder.max_prompt_tokens))


def _none_usable(path: str, what: str, max_prompt_tokens: int) -> str:
    return (
        f"{path}: every {what} is empty or longer than {max_prompt_tokens} tokens; "
        f"raise data.max_prompt_tokens, or rollout.engine.max_model_len"
    )
