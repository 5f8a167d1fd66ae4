"""The rollout engine: paged KV cache, continuous batching, in-place weight updates. Usable alone as a library.

Names are resolved on first use, so that importing a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlserve.engine.config import EngineConfig
    from rlserve.engine.engine import Engine
    from rlserve.engine.parallel.distributed import join_ranks
    from rlserve.engine.parallel.follower import follow
    from rlserve.engine.parallel.rendezvous import RankPlace
    from rlserve.engine.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
    from rlserve.engine.stats import EngineStats
    from rlserve.engine.tokens import GeneratedTokens

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "GeneratedTokens",
    "RankPlace",
    "Request",
    "RequestOutput",
    "SampleOutput",
    "SamplingParams",
    "follow",
    "join_ranks",
]

_HOMES = {
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineStats": "stats",
    "FinishReason": "request",
    "GeneratedTokens": "tokens",
    "RankPlace": "parallel.rendezvous",
    "Request": "request",
    "RequestOutput": "request",
    "SampleOutput": "request",
    "SamplingParams": "request",
    "follow": "parallel.follower",
    "join_ranks": "parallel.distributed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
