"""What is measured of a sample once it has ended, as histograms.

::

    scheduled ──────► first token ──────► last token
        │   prefill        │     decode       │
        └─────────────── inference ───────────┘

Only of samples that came to an end of their own, by a stop or by their length: not of aborted ones, nor of those that
an error ended. The times are this engine's, preemptions and pauses included.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.engine.stats.metrics import INTER_TOKEN_BOUNDS_S, REQUEST_BOUNDS_S, Histogram, HistogramCounter

SAMPLES_OF_REQUEST_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS_BOUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)


def tokens_bounds(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to the longest that there can be: vLLM's bounds for tokens of a request."""
    steps = (float(factor * 10**power) for power in range(len(str(most))) for factor in (1, 2, 5))
    return tuple(step for step in steps if step <= most)


@dataclass(frozen=True, kw_only=True)
class EndedSample:
    """One sample at its end."""

    num_prompt_tokens: int
    num_generated_tokens: int
    """In the whole answer."""
    num_drawn_tokens: int
    """Of these, those that this engine drew: not those that were brought from another."""
    num_prefilled_tokens: int
    """That were computed before its first token and were not in the cache; 0 where another sample of its request had
    computed them."""
    max_tokens: int
    num_preemptions: int
    scheduled_s: float
    """When it was scheduled first, all of these by the engine's clock."""
    first_token_s: float
    last_token_s: float


@dataclass(frozen=True, kw_only=True)
class EndedSamples:
    """Of each sample, but for two that are of each request."""

    prompt_tokens: Histogram
    generated_tokens: Histogram
    max_tokens: Histogram
    prefilled_tokens: Histogram
    preemptions: Histogram
    prefill_time: Histogram
    """From the first schedule to the first token."""
    decode_time: Histogram
    """From the first token to the last."""
    inference_time: Histogram
    """From the first schedule to the last token."""
    time_per_output_token: Histogram
    """Mean time between two tokens of the sample; 0 where it has only one."""
    samples_of_request: Histogram
    """``n`` of a request, once all of its samples have ended."""
    longest_generated_tokens: Histogram
    """Tokens of the longest of its samples."""


class EndedSamplesCounter:
    """
    Args:
        max_model_len: most tokens of a prompt and its answer.
    """

    def __init__(self, max_model_len: int) -> None:
        bounds = tokens_bounds(max_model_len)
        self._prompt_tokens = HistogramCounter(bounds)
        self._generated_tokens = HistogramCounter(bounds)
        self._max_tokens = HistogramCounter(bounds)
        self._prefilled_tokens = HistogramCounter(bounds)
        self._longest_generated_tokens = HistogramCounter(bounds)
        self._preemptions = HistogramCounter(PREEMPTIONS_BOUNDS)
        self._prefill_time = HistogramCounter(REQUEST_BOUNDS_S)
        self._decode_time = HistogramCounter(REQUEST_BOUNDS_S)
        self._inference_time = HistogramCounter(REQUEST_BOUNDS_S)
        self._time_per_output_token = HistogramCounter(INTER_TOKEN_BOUNDS_S)
        self._samples_of_request = HistogramCounter(SAMPLES_OF_REQUEST_BOUNDS)

    def observe(self, sample: EndedSample) -> None:
        """Count a sample that has ended by itself."""
        decode_s = sample.last_token_s - sample.first_token_s
        self._prompt_tokens.observe(sample.num_prompt_tokens)
        self._generated_tokens.observe(sample.num_generated_tokens)
        self._max_tokens.observe(sample.max_tokens)
        self._prefilled_tokens.observe(sample.num_prefilled_tokens)
        self._preemptions.observe(sample.num_preemptions)
        self._prefill_time.observe(sample.first_token_s - sample.scheduled_s)
        self._decode_time.observe(decode_s)
        self._inference_time.observe(sample.last_token_s - sample.scheduled_s)
        self._time_per_output_token.observe(decode_s / max(sample.num_drawn_tokens - 1, 1))

    def observe_request(self, num_samples: int, num_longest: int) -> None:
        """Count a request whose samples have all ended by themselves.

        Args:
            num_longest: tokens of the longest of them.
        """
        self._samples_of_request.observe(num_samples)
        self._longest_generated_tokens.observe(num_longest)

    def snapshot(self) -> EndedSamples:
        """The histograms of now."""
        return EndedSamples(
            prompt_tokens=self._prompt_tokens.snapshot(),
            generated_tokens=self._generated_tokens.snapshot(),
            max_tokens=self._max_tokens.snapshot(),
            prefilled_tokens=self._prefilled_tokens.snapshot(),
            preemptions=self._preemptions.snapshot(),
            prefill_time=self._prefill_time.snapshot(),
            decode_time=self._decode_time.snapshot(),
            inference_time=self._inference_time.snapshot(),
            time_per_output_token=self._time_per_output_token.snapshot(),
            samples_of_request=self._samples_of_request.snapshot(),
            longest_generated_tokens=self._longest_generated_tokens.snapshot(),
        )
