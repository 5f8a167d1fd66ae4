"""A server's parts without processes: a pool whose engine writes what it is told to."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from rlserve.engine.requests.delta import RequestDelta, SampleDelta
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.engine.stats.metrics import Value
from rlserve.serving.accounting import Accounts
from rlserve.serving.admin.base import Operations, ReplicaStatus
from rlserve.serving.admin.key_files import KeyFiles
from rlserve.serving.config import LimitsConfig, ServeConfig, ServedModelConfig
from rlserve.serving.content.masking import Masking
from rlserve.serving.front.context import ServerContext
from rlserve.serving.keys import Keys
from rlserve.serving.metrics import LiveNumbers, ServerMetrics
from rlserve.serving.records import Records
from rlserve.serving.replicas.base import PoolCounts
from rlserve.serving.replicas.live_request import LiveRequest, RequestGroup
from rlserve.serving.replicas.messages import Ready
from rlserve.serving.text.conversation import ConversationRenderer
from rlserve.serving.text.vocabulary import Vocabulary
from rlserve.tasks.character_tokenizer import character_tokenizer

KEY = "key-for-unit-tests"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"
ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789 :+={}[]<>/_,."\n'


CALLING = TEMPLATE + "{# <tool_call> </think> #}{{ 'thinks' if enable_thinking is defined and enable_thinking }}"
"""Of a model that thinks and calls tools."""
CALL = '<tool_call>{"name": "now", "arguments": {"a": [1, 2]}}</tool_call>'


class FakePool:
    """Answers every request with the same text, one token after the other, and remembers what it was asked."""

    def __init__(self, text: str = "hello") -> None:
        self.text = text
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self.opened = asyncio.Event()
        self.affinities: list[str] = []
        """Set by the first requests."""
        self.num_ready = 1
        self.num_places = 8
        self.num_live_samples = 0
        self.finish_reason = FinishReason.LENGTH
        self.time_to_first_token_s: float | None = None
        """As the engine tells it of whole answers; so are the next two."""
        self.queue_time_s: float | None = None
        self.time_to_last_token_s: float | None = None
        self.error: str | None = None
        """What all requests come to, in place of the text."""
        self.hangs = False
        """Whether nothing comes after the first token."""
        self.limits = Ready(vocab_size=len(TOKENIZER), max_model_len=100, eos_token_ids=(2,), max_num_sequences=8)
        self.counts = PoolCounts(num_failovers=0, num_lost=0)
        self.engine_metrics: Mapping[str, Mapping[str, Value]] = {}
        self.num_refreshed = 0

    async def refresh(self) -> None:
        self.num_refreshed += 1

    @asynccontextmanager
    async def open(self, requests: Sequence[Request], affinity: str, *, streamed: bool) -> AsyncIterator[RequestGroup]:
        self.requests += requests
        self.opened.set()
        changed = asyncio.Event()
        self.affinities.append(affinity)
        lives = [LiveRequest(request, affinity, streamed=streamed, changed=changed) for request in requests]
        writing = asyncio.create_task(self._write(lives, changed))
        try:
            yield RequestGroup(lives, changed)
        finally:
            writing.cancel()
            self.aborted += [live.request.id for live in lives if not live.has_ended]

    async def _write(self, lives: Sequence[LiveRequest], changed: asyncio.Event) -> None:
        """One token after the other: each has been read before the next comes."""
        if self.error is not None:
            for live in lives:
                live.end(self.error)
            return
        tokens = VOCABULARY.encode(self.text, add_special_tokens=False)
        for start, token in enumerate(tokens):
            if self.hangs and start > 0:
                return
            for live in lives:
                if live.streamed:
                    end = self.finish_reason if start == len(tokens) - 1 else None
                    samples = tuple(
                        SampleDelta(index=index, start=start, tokens=generated([token]), finish_reason=end)
                        for index in range(live.request.sampling.n)
                    )
                    live.take(RequestDelta(request_id=live.request.id, samples=samples))
            while changed.is_set():
                await asyncio.sleep(0)
        for live in lives:
            samples = tuple(
                SampleOutput(index=index, tokens=generated(tokens), finish_reason=self.finish_reason)
                for index in range(live.request.sampling.n)
            )
            output = RequestOutput(
                request_id=live.request.id,
                samples=samples,
                num_cached_tokens=1,
                queue_time_s=self.queue_time_s,
                time_to_first_token_s=self.time_to_first_token_s,
                time_to_last_token_s=self.time_to_last_token_s,
            )
            live.take(RequestDelta(request_id=live.request.id, samples=(), output=output))


def generated(token_ids: Sequence[int]) -> GeneratedTokens:
    """Tokens that are all equally likely."""
    number = len(token_ids)
    return GeneratedTokens.of(token_ids, [-1.0] * number, [-1.0] * number, [3] * number)


TOKENIZER = character_tokenizer(ALPHABET)
VOCABULARY = Vocabulary(TOKENIZER)


class FakeOperations(Operations):
    """Operators can do nothing, and see no replicas."""

    async def status(self) -> list[ReplicaStatus]:
        return []


def fake_key_files() -> KeyFiles:
    """No keys at all."""
    return KeyFiles(ServeConfig(model=ServedModelConfig(path="/models/fake")), {})


def fake_context(
    *,
    pool: FakePool | None = None,
    keys: Keys | None = None,
    body_timeout_s: float = 30.0,
    config: ServeConfig | None = None,
    records: Records | None = None,
    masking: Masking | None = None,
) -> ServerContext:
    """All that routes need."""
    pool = FakePool() if pool is None else pool
    config = config or ServeConfig(model=ServedModelConfig(path="/models/fake", name="fake"))
    config = replace(config, limits=replace(config.limits, body_timeout_s=body_timeout_s))
    assert isinstance(config.limits, LimitsConfig)
    numbers = LiveNumbers(
        engines={}, level=0, num_live_samples=0, num_ready_replicas=1, num_failovers=0, num_lost_replicas=0
    )
    return ServerContext(
        config=config,
        keys=Keys([hashlib.sha256(KEY.encode()).digest()]) if keys is None else keys,
        pool=pool,  # type: ignore[arg-type]
        vocabulary=VOCABULARY,
        renderer=ConversationRenderer(TOKENIZER, TEMPLATE, 5.0),
        end_token_ids=(),
        metrics=ServerMetrics("fake", lambda: numbers),
        records=records or Records(accounts=Accounts(config.accounting, {}), audit=None),
        started_s=0,
        masking=masking,
    )


def fake_talker() -> FakePool:
    """Answers ``hello`` and stops, with room for a conversation."""
    made = FakePool("hello")
    made.finish_reason = FinishReason.STOP
    made.limits = replace(made.limits, max_model_len=400)
    return made


def calling_context(pool: FakePool) -> ServerContext:
    """Of a model that thinks and calls tools."""
    return replace(fake_context(pool=pool), renderer=ConversationRenderer(TOKENIZER, CALLING, 5.0))
