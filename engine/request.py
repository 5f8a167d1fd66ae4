"""What goes into the engine and what comes out of it. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    """How to sample. Not validated here: a bad value gives the request an error output, never an exception."""

    n: int = 1
    """Samples of the same prompt; they share one prefill."""
    temperature: float = 1.0
    """0 is greedy, and so is anything below 1e-5."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    max_tokens: int = 16
    seed: int = 0
    """The random numbers are a hash of (seed, sample index, position): batch and replica do not matter."""
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Strings that end a sample; they need a tokenizer."""
    ignore_eos: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleOutput:
    """One sample, finished or not. The tuples have one entry per generated token."""

    index: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    """Log-probability under the model itself: temperature 1, whole vocabulary (raw)."""
    behaviour_log_probs: tuple[float, ...] = ()
    """Log-probability under the distribution that was sampled from: after temperature, top-k and top-p,
    renormalised over the kept tokens. Greedy choices have 0."""
    weight_versions: tuple[int, ...] = ()
    """Version of the weights that made each token."""
    finish_reason: FinishReason | None = None
    """None where the sample is not finished."""
    stop_reason: int | str | None = None
    """The token id or the string that ended the sample, if one did."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to complete ``sampling.n`` times."""

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    """Lower goes first; equal priorities go in order of arrival."""
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

    @property
    def finished(self) -> bool:
        """Whether every sample ended by itself (stop or length)."""
        return self.error is None and all(
            sample.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) for sample in self.samples
        )
