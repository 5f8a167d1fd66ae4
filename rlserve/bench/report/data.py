"""A benchmark as JSON has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlserve.bench.results.record import RequestRecord
from rlserve.bench.results.summary import Measurement, Summary


def benchmark_data(settings: Mapping[str, Any], runs: Sequence[tuple[Measurement, Summary]]) -> dict[str, Any]:
    """Settings, and for each run its summary and its requests. Times are seconds, but deadlines, which say ``_ms``."""
    return {
        "settings": dict(settings),
        "runs": [
            {**asdict(summary), "is_interrupted": run.is_interrupted, "requests": [_request(r) for r in run.records]}
            for run, summary in runs
        ],
    }


def _request(record: RequestRecord) -> dict[str, Any]:
    return {
        "conversation": record.conversation,
        "turn": record.turn,
        "due_s": record.due_s,
        "sent_s": record.sent_s,
        "latency_s": record.latency_s,
        "ttft_s": record.ttft_s,
        "tpot_s": record.tpot_s,
        "num_chunks": len(record.chunk_times_s),
        "num_input_tokens": record.num_input_tokens,
        "num_cached_tokens": record.num_cached_tokens,
        "num_output_tokens": record.num_output_tokens,
        "token_source": str(record.token_source),
        "finish_reason": record.finish_reason,
        "failure": None if record.failure is None else asdict(record.failure),
    }
