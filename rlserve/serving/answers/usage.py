"""How many tokens a request took."""

from __future__ import annotations

from typing import Any


def usage(*, num_prompt_tokens: int, num_generated_tokens: int, num_cached_tokens: int) -> dict[str, Any]:
    """As OpenAI counts: the prompt once, whatever ``n`` is."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_generated_tokens,
        "total_tokens": num_prompt_tokens + num_generated_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


def response_usage(
    *, num_prompt_tokens: int, num_generated_tokens: int, num_cached_tokens: int, num_reasoning_tokens: int
) -> dict[str, Any]:
    """The same for ``/v1/responses``."""
    return {
        "input_tokens": num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": num_generated_tokens,
        "output_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
        "total_tokens": num_prompt_tokens + num_generated_tokens,
    }
