"""What goes into the engine and what comes out of it. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby

from rlserve.engine.requests.generated_tokens import NO_TOKENS, GeneratedTokens
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.engine.requests.thinking_budget import ThinkingBudget

TopLogProbs = tuple[tuple[int, float], ...]
"""The likeliest tokens at one position with their raw log-probabilities, likeliest first."""


class FinishReason(StrEnum):
    """Why a sample ended."""

    STOP = "stop"
    """A stop token, a stop string or the end-of-sequence token."""
    LENGTH = "length"
    """``max_tokens`` or the model's length was reached."""
    ABORT = "abort"
    """Aborted; the tokens so far are kept and can be resumed elsewhere."""
    ERROR = "error"
    """The request was refused."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample. Not validated here: a bad value gives the request an error output, never an exception.

    The logits go through, in this order (vLLM's): ``structured_output``, allowed and bad tokens, bad words,
    ``min_tokens``, ``logit_bias``, penalties, ``thinking_budget``, temperature, ``min_p``, ``top_k``, ``top_p``.
    Behaviour log-probabilities are those after all of it, raw ones those before any of it.
    """

    n: int = 1
    """Samples of the same prompt; they share one prefill."""
    temperature: float = 1.0
    """0 is greedy, and so is anything below 1e-5."""
    num_greedy: int = 0
    """So many of the ``n`` samples, the last ones, are greedy, whatever the temperature."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 or -1 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    min_p: float = 0.0
    """Keep the tokens at least this many times as likely as the likeliest; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Logits of tokens in the prompt or generated so far: positive ones divided by this, others multiplied."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens generated so far."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time it was generated so far."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit, from -100 to 100."""
    allowed_token_ids: tuple[int, ...] = ()
    """Only these are drawn; empty allows all."""
    bad_token_ids: tuple[int, ...] = ()
    """These are never drawn."""
    bad_words: tuple[str, ...] = ()
    """Words that are not generated, at the beginning or after a space; they need a tokenizer. See
    ``engine/sequences/bad_words.py``."""
    max_tokens: int = 16
    sample_max_tokens: tuple[int, ...] = ()
    """Of each sample, where they differ; none above ``max_tokens``. Empty: ``max_tokens`` holds for all."""
    min_tokens: int = 0
    """Stop tokens, the end-of-sequence token among them, are not drawn before that many tokens, and stop strings
    are passed over."""
    seed: int | None = None
    """The random numbers are a hash of (seed, sample index, position): batch and replica do not matter. None: a seed
    from the request's id, so that requests differ, and the same request gets the same numbers again."""
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Strings that end a sample; they need a tokenizer."""
    ignore_eos: bool = False
    num_top_log_probs: int = 0
    """Likeliest tokens to tell for each generated token."""
    log_prob_token_ids: tuple[int, ...] = ()
    """Tell the raw log-probabilities of these tokens and of the drawn one, in this order, in place of the likeliest."""
    prompt_log_probs: int | None = None
    """None: nothing is told about the prompt. Else the raw log-probability of each of its tokens, and of that many
    likeliest tokens at its position. The prompt is then computed whole, past the prefix cache."""
    structured_output: StructuredOutput | None = None
    """The form of the answer. Only tokens that can become such an answer are drawn, and an end-of-sequence token
    exactly where it is one; where nothing else can follow, ``min_tokens`` does not hold it back. Needs a tokenizer
    and ``rlserve[structured]``."""
    thinking_budget: ThinkingBudget | None = None
    """How long each sample may think; None: as long as it likes."""
    kept_support: bool = False
    """Tell which tokens each draw could have given; see ``engine/sampling/support.py``."""

    def max_tokens_of(self, index: int) -> int:
        """Most tokens of one sample."""
        return self.sample_max_tokens[index] if self.sample_max_tokens else self.max_tokens

    def temperature_of(self, index: int) -> float:
        """Of one sample."""
        return 0.0 if index >= self.n - self.num_greedy else self.temperature

    @property
    def has_logit_offsets(self) -> bool:
        """Whether a fixed number is added to some logits."""
        return bool(self.logit_bias or self.allowed_token_ids or self.bad_token_ids or self.bad_words)

    @property
    def penalises(self) -> bool:
        """Whether tokens that were there before change their logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def adjusts_logits(self) -> bool:
        """Whether the logits are changed before temperature."""
        return self.has_logit_offsets or self.penalises or self.min_tokens > 0 or self.thinking_budget is not None

    @property
    def tells_details(self) -> bool:
        """Whether more than the chosen token is told of each draw."""
        return self.tells_top_log_probs or self.kept_support

    @property
    def tells_top_log_probs(self) -> bool:
        """Whether the log-probabilities of more than the chosen token are told."""
        return self.num_top_log_probs > 0 or bool(self.log_prob_token_ids)

    @property
    def is_special(self) -> bool:
        """Whether a draw takes more than temperature, ``top_k``, ``top_p``, ``min_p`` and a random number."""
        return self.adjusts_logits or self.tells_details or self.structured_output is not None


@dataclass(frozen=True, kw_only=True)
class SampleOutput:
    """One sample, finished or not. ``tokens`` has the arrays; the properties give the same as tuples, made anew each
    time that they are asked for. All have one entry per generated token."""

    index: int
    tokens: GeneratedTokens = NO_TOKENS
    top_log_probs: tuple[TopLogProbs, ...] = ()
    """Empty unless ``num_top_log_probs`` or ``log_prob_token_ids`` asks for it."""
    kept_support: tuple[bytes, ...] = ()
    """Packed; empty unless asked for."""
    finish_reason: FinishReason | None = None
    """None where the sample is not finished."""
    stop_reason: int | str | None = None
    """The token id or the string that ended the sample, if one did."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All that was drawn."""
        return tuple(self.tokens.token_ids.tolist())

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Log-probability under the model itself: temperature 1, whole vocabulary (raw)."""
        return tuple(self.tokens.log_probs.tolist())

    @property
    def behaviour_log_probs(self) -> tuple[float, ...]:
        """Log-probability under the distribution that was sampled from: after temperature, top-k and top-p,
        renormalised over the kept tokens. Greedy choices have 0."""
        return tuple(self.tokens.behaviour_log_probs.tolist())

    @property
    def weight_versions(self) -> tuple[int, ...]:
        """Version of the weights that made each token."""
        return tuple(self.tokens.weight_versions.tolist())

    @property
    def weight_spans(self) -> tuple[tuple[int, int, int], ...]:
        """(version, start, end) of each run of tokens [start, end) that one version of the weights made."""
        spans, start = [], 0
        for version, run in groupby(self.weight_versions):
            end = start + sum(1 for _ in run)
            spans.append((version, start, end))
            start = end
        return tuple(spans)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to complete ``sampling.n`` times."""

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    """Lower goes first; equal priorities go in order of arrival."""
    cache_salt: str = ""
    """Cached prefixes are shared by requests with the same one alone."""
    adapter: str | None = None
    """Name of a loaded adapter that the samples are computed with; None: with the model alone."""
    resumed: tuple[SampleOutput, ...] = ()
    """Partial samples from another engine: their tokens, log-probabilities and versions are kept. A sample
    whose ``finish_reason`` is STOP or LENGTH is complete and is only carried along."""


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """All samples of one request, in order of their index."""

    request_id: str
    samples: tuple[SampleOutput, ...]
    error: str | None = None
    """Why the request was refused, or None."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""
    prompt_log_probs: tuple[float | None, ...] = ()
    """Raw log-probability of each prompt token after those before it; None for the first. Empty unless asked for,
    and where the request ended before its prompt was computed."""
    prompt_top_log_probs: tuple[TopLogProbs, ...] = ()
    """The likeliest tokens at each position of the prompt; nothing at the first."""
    queue_time_s: float | None = field(default=None, compare=False)
    """From its arrival at the engine until its first sample was scheduled; None where none was."""
    time_to_first_token_s: float | None = field(default=None, compare=False)
    """From its arrival at the engine."""
    time_to_last_token_s: float | None = field(default=None, compare=False)
    """The same; None where there is no token, and of a request that another engine has begun."""

    @property
    def finished(self) -> bool:
        """Whether every sample ended by itself (stop or length)."""
        return self.error is None and all(
            sample.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) for sample in self.samples
        )
