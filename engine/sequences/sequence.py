"""One sample on its way through the engine, and the request that it belongs to.

    following ──► waiting ◄──► running ──► ended
        └───────────────────────►┘ │         ▲
        ▲──────────────────────────┘         │
        (every state may also end: abort) ───┘

The first unfinished sample of a request leads: it computes the prompt, and the others follow, sharing its
blocks from then on. A running sample that loses its blocks (preemption) waits again with its tokens kept. Where new
weights have all of them computed anew, one of a request leads again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.adapters.adapter import NO_ADAPTER_ID, Adapter
from rlserve.engine.grammars.matcher import Grammar, GrammarMatcher
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, SampleOutput, TopLogProbs
from rlserve.engine.sequences.bad_words import BadWords
from rlserve.engine.sequences.prompt_scores import PromptScores
from rlserve.engine.sequences.stop_strings import StopStringChecker
from rlserve.engine.stats.metrics import NO_TIME
from rlserve.errors import IllegalTransitionError


class SequenceState(StrEnum):
    """Where a sample is."""

    FOLLOWING = "following"
    """Its request's leader has not finished the prompt."""
    WAITING = "waiting"
    RUNNING = "running"
    """Has a row and blocks."""
    ENDED = "ended"


LEGAL_MOVES: dict[SequenceState, frozenset[SequenceState]] = {
    SequenceState.FOLLOWING: frozenset({SequenceState.WAITING, SequenceState.RUNNING, SequenceState.ENDED}),
    SequenceState.WAITING: frozenset({SequenceState.RUNNING, SequenceState.ENDED}),
    SequenceState.RUNNING: frozenset({SequenceState.WAITING, SequenceState.FOLLOWING, SequenceState.ENDED}),
    SequenceState.ENDED: frozenset(),
}


@dataclass(kw_only=True, eq=False)
class RequestState:
    """A request in the engine."""

    request: Request
    arrival_s: float
    """By the engine's clock."""
    arrival: int
    """Counts requests, so that equal priorities go in order of arrival."""
    prompt: NDArray[np.int32]
    sequences: list[Sequence] = field(default_factory=list)
    """The samples that were not complete on arrival."""
    outputs: dict[int, SampleOutput] = field(default_factory=dict)
    """Ended samples by index."""
    num_cached_tokens: int = 0
    queue_time_s: float | None = None
    """From its arrival until its first sample was scheduled."""
    time_to_first_token_s: float | None = None
    has_started: bool = False
    """One of its samples has had a row."""
    error: str | None = None
    logit_offsets: torch.Tensor | None = None
    """[vocabulary] what the sampler adds to the logits of every sample, from the first one on."""
    bad_words: BadWords | None = None
    grammar: Grammar | None = None
    """Of a structured output."""
    prompt_scores: PromptScores | None = None
    """Log-probabilities of the prompt, if asked for."""
    adapter: Adapter | None = None
    """The one that all of its samples are computed with."""

    @property
    def time_to_last_token_s(self) -> float | None:
        """Of all samples, once they have ended; not known of a request that another engine has begun."""
        ends_s = [sequence.last_token_s for sequence in self.sequences if sequence.last_token_s != NO_TIME]
        return None if self.request.resumed or not ends_s else max(ends_s) - self.arrival_s

    @property
    def adapter_id(self) -> int:
        """That of its adapter, or that of none."""
        return NO_ADAPTER_ID if self.adapter is None else self.adapter.id

    @property
    def unfinished(self) -> list[Sequence]:
        """Those of its samples that have not ended."""
        return [sequence for sequence in self.sequences if sequence.state is not SequenceState.ENDED]

    @property
    def must_score_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are still wanted, so that all of them must be computed."""
        return self.prompt_scores is not None and not self.prompt_scores.is_complete


@dataclass(kw_only=True, eq=False)
class Sequence:
    """One sample. Its row and its blocks belong to the scheduler."""

    owner: RequestState
    index: int
    history: GeneratedTokens
    """Generated tokens as of the last time it had no row; stale while running."""
    state: SequenceState = SequenceState.WAITING
    row: int = -1
    blocks: list[int] = field(default_factory=list)
    """Blocks held, in order of position."""
    block_names: list[bytes] = field(default_factory=list)
    """Chain of names of its full blocks, as far as known, all under ``names_version``."""
    names_version: int | None = None
    """The version of the weights that made all of its cached keys and values; None where versions are mixed,
    so that its blocks must not be shared by name."""
    last_token_s: float = NO_TIME
    """When this engine drew the last token, as of the last time it had no row."""
    scheduled_s: float = NO_TIME
    """When it was scheduled first; not known of one that took over the prompt of another."""
    first_token_s: float = NO_TIME
    """When this engine drew its first token."""
    num_resumed_tokens: int = 0
    """Those that were brought from another engine."""
    num_prefilled_tokens: int = 0
    """Tokens to compute, when it was scheduled first, that were not in the cache."""
    num_preemptions: int = 0
    """For another sample."""
    num_computed: int = 0
    """Tokens whose KV is in the cache, kept for sequences in prefill only."""
    num_published_tokens: int = 0
    """Tokens up to which its full blocks have been named in the pool."""
    was_preempted: bool = False
    """It has lost its row and its blocks once, for another sample or for new weights."""
    followers: list[Sequence] = field(default_factory=list)
    stop_checker: StopStringChecker | None = None
    grammar_matcher: GrammarMatcher | None = None
    """From the first draw on that has a grammar."""
    top_log_probs: list[TopLogProbs] = field(default_factory=list)
    """Of each generated token, if asked for; so is the next."""
    kept_support: list[bytes] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, int, int]:
        """Who goes first: priority, then arrival, then index. The last one is preempted first."""
        return (self.owner.request.priority, self.owner.arrival, self.index)

    def __lt__(self, other: Sequence) -> bool:
        return self.order < other.order

    @property
    def was_computed_before(self) -> bool:
        """Here, or by the engine that its first tokens are of: what it has in its cache now is computed again."""
        return self.was_preempted or len(self.history) > 0

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens; valid until it samples, while it waits or is in prefill."""
        return len(self.owner.prompt) + len(self.history)

    def output(self, reason: FinishReason | None, stop_reason: int | str | None) -> SampleOutput:
        """The sample as its caller sees it; valid while it has no row."""
        return SampleOutput(
            index=self.index,
            tokens=self.history,
            top_log_probs=tuple(self.top_log_probs),
            kept_support=tuple(self.kept_support),
            finish_reason=reason,
            stop_reason=stop_reason,
        )

    def move(self, state: SequenceState) -> None:
        """Change state.

        Raises:
            IllegalTransitionError: the table has no such move.
        """
        if state not in LEGAL_MOVES[self.state]:
            raise IllegalTransitionError(
                f"request {self.owner.request.id!r}, sample {self.index}: {self.state} -> {state} is not a legal move"
            )
        self.state = state
