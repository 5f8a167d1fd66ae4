"""How long an answer waited and took, as vLLM tells it of each request.

::

    arrival ──queue_time──► scheduled ──time_to_first_token──► first token ──generation_time──► last token
"""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.engine.requests.request import RequestOutput


def timings(outputs: Sequence[RequestOutput]) -> dict[str, float]:
    """Milliseconds, and tokens a second, of all requests of one answer together: from the first that was scheduled to
    the last token. What is not known is left out: an engine that took over an answer has not seen its beginning.

    Args:
        outputs: as their engines ended them.
    """
    queue_s = [output.queue_time_s for output in outputs if output.queue_time_s is not None]
    first_s = [output.time_to_first_token_s for output in outputs if output.time_to_first_token_s is not None]
    last_s = [output.time_to_last_token_s for output in outputs if output.time_to_last_token_s is not None]
    if not len(queue_s) == len(first_s) == len(last_s) == len(outputs) > 0:
        return {}
    samples = [sample for output in outputs for sample in output.samples]
    num_tokens = sum(len(sample.tokens) for sample in samples)
    scheduled, first, last = min(queue_s), min(first_s), max(last_s)
    told = {
        "time_to_first_token_ms": (first - scheduled) * 1000,
        "generation_time_ms": (last - first) * 1000,
        "queue_time_ms": scheduled * 1000,
    }
    if len(samples) == 1 and num_tokens > 1:
        told["mean_itl_ms"] = (last - first) / (num_tokens - 1) * 1000
    if last > scheduled:
        told["tokens_per_second"] = num_tokens / (last - scheduled)
    return told
