"""The engine in a thread of its own: requests from any thread, commands between steps, answers as they come."""

from rlserve.engine.loop.engine_loop import EngineLoop, LoopStats
from rlserve.engine.loop.subscription import AnswerSubscription, DeltaSubscription, ProgressSubscription, Subscription

__all__ = ["AnswerSubscription", "DeltaSubscription", "EngineLoop", "LoopStats", "ProgressSubscription", "Subscription"]
