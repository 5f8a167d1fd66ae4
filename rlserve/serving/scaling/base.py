"""The contract of scaling policies: plain data in, a number of replicas and why out. No clock, no process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar


@dataclass(frozen=True, kw_only=True)
class LoadSample:
    """What there was to do at one moment. None is unknown, or nothing was seen since the sample before."""

    time_s: float
    num_ready: int
    """Replicas that take requests."""
    num_live_samples: int
    """Answers under way or waiting."""
    num_places: int
    """That the ready replicas compute at once."""
    num_waiting: int | None = None
    """Requests in the queues of replicas, or without one."""
    kv_cache_usage: float | None = None
    """Mean over the replicas, from 0 to 1."""
    time_to_first_token_s: float | None = None
    """Mean of those since the sample before."""
    inter_token_latency_s: float | None = None
    """Likewise."""
    busy_share: float | None = None
    """Of the time since the sample before that engines computed, the mean over replicas."""


@dataclass(frozen=True, kw_only=True)
class ScalingObservation:
    """A server at one moment."""

    time_s: float
    """Of a clock that only goes forward."""
    unix_s: float
    """Since 1970, for the schedule."""
    num_wanted: int
    """Replicas that were decided on last."""
    most: int
    """That there is room for."""
    samples: tuple[LoadSample, ...]
    """From the oldest on, over the scale-up window at least as far as there are any."""


class Cause(StrEnum):
    """What a decision rests on: the labels of a metric."""

    FLOOR = "floor"
    CEILING = "ceiling"
    LOAD = "load"
    NUM_WAITING = "num_waiting"
    KV_CACHE_USAGE = "kv_cache_usage"
    TIME_TO_FIRST_TOKEN = "time_to_first_token_s"
    INTER_TOKEN_LATENCY = "inter_token_latency_s"
    BUSY_SHARE = "busy_share"
    COOLDOWN = "cooldown"
    WINDOW = "window"
    PAUSED = "paused"
    """An operator has the engines stand still, so what waits says nothing."""
    STEADY = "steady"
    """As many replicas as the load asks for."""
    UNKNOWN = "unknown"
    """No metric said anything."""


@dataclass(frozen=True, kw_only=True)
class ScalingPlan:
    """A decision with the grounds for it."""

    num_replicas: int
    """Wanted from now on."""
    cause: Cause
    reason: str
    """For people."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What it rests on."""


StateT = TypeVar("StateT")


class ScalingPolicy(ABC, Generic[StateT]):
    """Decides how many replicas there are. Keeps nothing between decisions but the state that it hands back."""

    @property
    @abstractmethod
    def look_back_s(self) -> float:
        """How old the samples are that it asks for."""

    @abstractmethod
    def initial_state(self) -> StateT:
        """State before the first decision."""

    @abstractmethod
    def decide(self, observation: ScalingObservation, state: StateT) -> tuple[ScalingPlan, StateT]:
        """A pure function: equal arguments give equal results."""
