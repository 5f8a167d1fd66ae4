"""The rollout engine: paged KV cache, continuous batching, in-place weight updates. Usable alone as a library.

Names are resolved on first use, so that importing a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlserve.distributed.base import RankPlace
    from rlserve.engine.config import EngineConfig
    from rlserve.engine.core.engine import Engine
    from rlserve.engine.loop.engine_loop import EngineLoop
    from rlserve.engine.parallel.distributed import join_ranks
    from rlserve.engine.parallel.follower import follow
    from rlserve.engine.parallel.follower_thread import FollowerThread
    from rlserve.engine.requests.delta import RequestDelta, SampleDelta
    from rlserve.engine.requests.generated_tokens import GeneratedTokens
    from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
    from rlserve.engine.requests.structured_output import StructuredOutput
    from rlserve.engine.requests.thinking_budget import ThinkingBudget
    from rlserve.engine.stats.engine_stats import EngineStats

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineLoop",
    "EngineStats",
    "FinishReason",
    "FollowerThread",
    "GeneratedTokens",
    "RankPlace",
    "Request",
    "RequestDelta",
    "RequestOutput",
    "SampleDelta",
    "SampleOutput",
    "SamplingParams",
    "StructuredOutput",
    "ThinkingBudget",
    "follow",
    "join_ranks",
]

_HOMES = {
    "Engine": "core.engine",
    "EngineConfig": "config",
    "EngineLoop": "loop.engine_loop",
    "EngineStats": "stats.engine_stats",
    "FinishReason": "requests.request",
    "FollowerThread": "parallel.follower_thread",
    "GeneratedTokens": "requests.generated_tokens",
    "RankPlace": "parallel.distributed",
    "Request": "requests.request",
    "RequestDelta": "requests.delta",
    "RequestOutput": "requests.request",
    "SampleDelta": "requests.delta",
    "SampleOutput": "requests.request",
    "SamplingParams": "requests.request",
    "StructuredOutput": "requests.structured_output",
    "ThinkingBudget": "requests.thinking_budget",
    "follow": "parallel.follower",
    "join_ranks": "parallel.distributed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
