"""What answers tell where requests do not say it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """What answers of completions and chats tell where requests do not say it."""

    timings: bool = False
    """``metrics`` of each answer, or of the chunk with its usage: how long it waited and took. As vLLM has them."""
    stream_usage: bool = False
    """Streams tell their usage in each chunk and at their end, whatever ``stream_options`` ask for."""
    tokens_as_token_ids: bool = False
    """Log-probabilities name tokens as ``token_id:7``; ``return_tokens_as_token_ids`` of a request goes before it."""
