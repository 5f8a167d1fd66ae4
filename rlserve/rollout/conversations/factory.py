"""Makes what plays the conversations of a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from rlserve.engine.requests.request import RequestOutput
from rlserve.rollout.answer_text import AnswerText
from rlserve.rollout.config import DataConfig
from rlserve.rollout.conversations.player import ConversationPlayer
from rlserve.rollout.conversations.reply_tokens import ReplyTokens
from rlserve.rollout.conversations.transcript import ConversationLimits
from rlserve.rollout.environments.base import Environments
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.requests.base import RequestSpec


def create_player(
    config: EnvironmentConfig,
    data: DataConfig,
    environments: Environments,
    *,
    ask: Callable[[RequestSpec], Awaitable[RequestOutput]],
    decode: AnswerText,
    max_tokens: int,
) -> ConversationPlayer:
    """``max_tokens`` is the longest conversation, the prompt left out; ``ask`` answers the requests of turns."""
    assert config.name is not None, "there is an environment"
    return ConversationPlayer(
        environments,
        name=config.name,
        ask=ask,
        decode=decode,
        reply_tokens=ReplyTokens(
            decode.tokenizer,
            end_token_ids=decode.end_token_ids,
            applies_template=data.apply_chat_template,
            template_arguments=data.chat_template_kwargs,
        ),
        limits=ConversationLimits(
            max_turns=config.max_turns,
            max_tokens=max_tokens,
            max_turn_tokens=min(max_tokens, config.max_turn_tokens or max_tokens),
        ),
    )
