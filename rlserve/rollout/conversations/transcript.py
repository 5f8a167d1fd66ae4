"""The tokens of one conversation so far, and whose turn it is. Pure bookkeeping: no process, no clock.

    MODEL ──take_turn──► ENVIRONMENT ──take_reply──► MODEL | OVER

Tokens are never made from text a second time: the prompt of the next turn is the first prompt, what the model drew and
what the environment's replies became, end to end. A conversation is over when the environment says so, when a turn was
cut off, after ``max_turns``, and where no token more would fit; the last reply then leaves no tokens, so that a sample
ends with the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, SampleOutput
from rlserve.errors import IllegalTransitionError
from rlserve.rollout.environments.base import Reply
from rlserve.rollout.groups import Conversation


class TurnState(StrEnum):
    """Whose turn it is."""

    MODEL = "model"
    ENVIRONMENT = "environment"
    OVER = "over"


LEGAL_MOVES: Mapping[TurnState, frozenset[TurnState]] = {
    TurnState.MODEL: frozenset({TurnState.ENVIRONMENT}),
    TurnState.ENVIRONMENT: frozenset({TurnState.MODEL, TurnState.OVER}),
    TurnState.OVER: frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class ConversationLimits:
    """How long a conversation may become."""

    max_turns: int
    max_tokens: int
    """Of model and environment together, the prompt left out."""
    max_turn_tokens: int
    """Of one turn of the model."""


class Transcript:
    """One conversation. Moves along the table of legal moves."""

    def __init__(self, prompt_token_ids: tuple[int, ...], limits: ConversationLimits) -> None:
        self._prompt = prompt_token_ids
        self._limits = limits
        self._pieces: list[GeneratedTokens] = []
        """Of model and environment in turn."""
        self._rewards: list[float] = []
        self._metrics: dict[str, float] = {}
        self._finish_reason: FinishReason | None = None
        """Of the last turn, and at the end of the conversation."""
        self._last_prompt: tuple[int, ...] = ()
        self.state = TurnState.MODEL
        self.dropped_reply = False
        """Whether the conversation is over because there was no room for the last reply."""
        self.num_turns = 0
        """Of the model."""

    @property
    def num_tokens(self) -> int:
        """Of model and environment."""
        return sum(map(len, self._pieces))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All that was said, prompt included: the prompt of the next turn."""
        return (*self._prompt, *(token for piece in self._pieces for token in piece.token_ids.tolist()))

    @property
    def last_turn(self) -> GeneratedTokens:
        """What the model said last, while it is the environment's turn."""
        assert self.state is TurnState.ENVIRONMENT
        return self._pieces[-1]

    @property
    def last_prompt(self) -> tuple[int, ...]:
        """The prompt of the turn before; empty where there was none."""
        return self._last_prompt

    @property
    def max_tokens(self) -> int:
        """Most tokens of the next turn."""
        return min(self._limits.max_turn_tokens, self._limits.max_tokens - self.num_tokens)

    @property
    def newest_version(self) -> int:
        """Of the weights that made a token; 0 where there is none."""
        return max((int(piece.weight_versions.max()) for piece in self._pieces), default=0)

    @property
    def is_cut(self) -> bool:
        """Whether the last turn was cut off by a limit of tokens."""
        return self._finish_reason is FinishReason.LENGTH

    @property
    def is_last(self) -> bool:
        """Whether the model has no turn after the last one, whatever the environment says."""
        return self.is_cut or self.num_turns >= self._limits.max_turns

    def take_turn(self, sample: SampleOutput) -> None:
        """MODEL → ENVIRONMENT: what the model said, ended by itself or cut off.

        Raises:
            IllegalTransitionError: it is not the model's turn.
        """
        assert sample.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), "a turn has ended"
        assert len(sample.tokens) >= 1, "a turn has a token"
        prompt = self.token_ids
        self._move(TurnState.ENVIRONMENT)
        self._last_prompt = prompt
        self._pieces.append(sample.tokens)
        self._finish_reason = sample.finish_reason
        self.num_turns += 1

    def take_reply(self, reply: Reply, token_ids: Sequence[int]) -> None:
        """ENVIRONMENT → MODEL, or OVER. ``token_ids`` are what the reply is to the model, at least one where the
        conversation goes on.

        Raises:
            IllegalTransitionError: it is not the environment's turn.
        """
        is_full = self.num_tokens + len(token_ids) >= self._limits.max_tokens
        is_over = reply.over or self.is_last or is_full
        self.dropped_reply = is_full and not (reply.over or self.is_last)
        self._move(TurnState.OVER if is_over else TurnState.MODEL)
        self._rewards.append(reply.reward)
        self._add_metrics(reply)
        if is_over:
            is_whole = reply.over and not self.is_cut
            self._finish_reason = FinishReason.STOP if is_whole else FinishReason.LENGTH
            return
        assert token_ids, "the environment said something"
        version = int(self._pieces[-1].weight_versions[-1])
        self._pieces.append(_said(token_ids, version))

    def take_remainder(self, reply: Reply) -> None:
        """What the environment gave for the last turn when it was told that its reply was dropped."""
        assert self.dropped_reply, "there was no room for a reply"
        self._rewards[-1] += reply.reward
        self._add_metrics(reply)

    def ended(self, *, index: int, environment_s: float) -> tuple[SampleOutput, Conversation]:
        """Sample ``index`` of its group, all turns in one, and how it came about.

        Raises:
            IllegalTransitionError: the conversation is not over.
        """
        if self.state is not TurnState.OVER:
            raise IllegalTransitionError(f"a conversation in state {self.state} has not ended")
        pieces = self._pieces
        mask = np.concatenate([np.full(len(piece), number % 2 == 0) for number, piece in enumerate(pieces)])
        sample = SampleOutput(
            index=index,
            tokens=GeneratedTokens(
                token_ids=np.concatenate([piece.token_ids for piece in pieces]),
                log_probs=np.concatenate([piece.log_probs for piece in pieces]),
                behaviour_log_probs=np.concatenate([piece.behaviour_log_probs for piece in pieces]),
                weight_versions=np.concatenate([piece.weight_versions for piece in pieces]),
            ),
            finish_reason=self._finish_reason,
        )
        conversation = Conversation(
            loss_mask=mask,
            num_turns=self.num_turns,
            turn_rewards=tuple(self._rewards),
            metrics=dict(self._metrics),
            environment_s=environment_s,
        )
        return sample, conversation

    def _add_metrics(self, reply: Reply) -> None:
        for name, value in reply.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + value

    def _move(self, to: TurnState) -> None:
        if to not in LEGAL_MOVES[self.state]:
            raise IllegalTransitionError(f"a conversation cannot move from {self.state} to {to}")
        self.state = to


def _said(token_ids: Sequence[int], version: int) -> GeneratedTokens:
    """Tokens of the environment. Their numbers mean nothing; with the version of the model's token before them they
    change neither the oldest nor the newest of a sample."""
    number = len(token_ids)
    return GeneratedTokens.of(token_ids, [0.0] * number, [0.0] * number, [version] * number)
