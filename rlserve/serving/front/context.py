"""What all routes share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from rlserve.serving.config import ServeConfig
from rlserve.serving.content.filtering import Filtering
from rlserve.serving.content.masking import Masking
from rlserve.serving.degradation import Level, Load, level_of
from rlserve.serving.keys import Keys
from rlserve.serving.metrics import ServerMetrics
from rlserve.serving.observing.tracing import Tracing
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import count_logprobs
from rlserve.serving.records import Records
from rlserve.serving.replicas.base import Replicas
from rlserve.serving.text.conversation import ConversationRenderer
from rlserve.serving.text.vocabulary import Vocabulary


@dataclass(kw_only=True)
class Draining:
    """Whether requests are welcome: not on the way to the end, and not where an operator says so."""

    is_ready: bool = True
    """False from the first moment on."""
    takes_requests: bool = True
    """False once the notice is over."""
    is_ending: bool = False
    """From SIGTERM on; nobody can call that off."""
    is_paused: bool = False
    """Whether the engines stand still. Requests are taken, and wait."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, kw_only=True)
class ServerContext:
    """Made once, by ``server.py``."""

    config: ServeConfig
    keys: Keys
    pool: Replicas
    vocabulary: Vocabulary
    renderer: ConversationRenderer
    end_token_ids: tuple[int, ...]
    """That end an answer, beside those that the model's files name."""
    metrics: ServerMetrics
    records: Records
    started_s: int
    """Unix time."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Folders of the LoRA adapters that are served, by name; operators add to them."""
    tracing: Tracing | None = None
    """None traces nothing."""
    masking: Masking | None = None
    """None takes nothing out of texts."""
    filtering: Filtering | None = None
    """None refuses no text."""
    draining: Draining = field(default_factory=Draining)

    @property
    def level(self) -> Level:
        """What gives way now."""
        return current_level(self.config, self.pool)

    async def readable(self, prompt: str) -> str:
        """A prompt as the model may read it."""
        return prompt if self.masking is None else await self.masking.prompt(prompt)

    def count_logprobs(self, name: str, value: int | None) -> int | None:
        """A number of likeliest tokens that was asked for; -1 is the whole vocabulary.

        Raises:
            ApiError: that is more than this server tells.
        """
        return count_logprobs(name, value, self.config.limits, self.pool.limits.vocab_size)

    def check_model(self, name: str | None) -> str | None:
        """The adapter that is asked for as a model; None is the model itself, and so is its own name.

        Raises:
            ApiError: there is none of this name.
        """
        if name is None or name == self.config.model_name:
            return None
        if name not in self.adapters:
            served = ", ".join(map(repr, (self.config.model_name, *self.adapters)))
            raise ApiError(404, f"there is no model {name[:200]!r}; there is {served}", "model")
        return name


def current_level(config: ServeConfig, pool: Replicas) -> Level:
    """What gives way now."""
    load = Load(num_live_samples=pool.num_live_samples, num_places=pool.num_places)
    return level_of(load, config.degradation)


def context_of(request: Request) -> ServerContext:
    """The context of the server that a request came to."""
    return cast(ServerContext, request.app.state.context)
