"""A load on a server whose replicas a policy scales, on a virtual clock.

::

    requests ──► routing policy ──► replicas: steps by the roofline ──► what clients felt
                                       ▲  │ every interval_s
                  resizing ◄── policy ◄───┘

Routing, the scaling policy, what it is shown and which replicas start or end are the code of a real server. A replica
takes ``start_s`` to load and is paid for from its start until its last answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlserve.engine.config import EngineConfig
from rlserve.roofline.accelerators import SlotType
from rlserve.roofline.costs import Costs
from rlserve.serving.config import RoutingConfig
from rlserve.serving.replicas.resizing import resizing
from rlserve.serving.replicas.state import ReplicaState
from rlserve.serving.routing.base import ReplicaLoad, RoutedRequest
from rlserve.serving.routing.factory import create_policy
from rlserve.serving.scaling.base import LoadSample, ScalingObservation, ScalingPolicy
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.server.load import ServedRequest
from rlserve.simulate.server.replica import ReplicaTotals, Served, SimulatedReplica

_PAID = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)
_DRAIN_LOOK_S = 0.25


@dataclass(frozen=True, kw_only=True)
class ServerScenario:
    """A server and what comes to it."""

    requests: Sequence[ServedRequest]
    costs: Costs
    slot_type: SlotType
    engine: EngineConfig
    routing: RoutingConfig
    num_replicas: int
    """At first, ready from the beginning."""
    most: int
    """Replicas that there is room for."""
    start_s: float
    """That a replica takes to load."""
    interval_s: float
    """Between two decisions."""
    begin_unix_s: float = 0.0
    """Of the schedule's hours."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The number of replicas from a moment on."""

    time_s: float
    num_wanted: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ServerResult:
    """What came of it. It ends with the last answer."""

    served: Sequence[Served]
    changes: Sequence[Change]
    """The first is that of the beginning."""
    replica_s: float
    """Time of all replicas that was paid for."""
    end_s: float


def simulate_server(scenario: ServerScenario, policy: ScalingPolicy[Any] | None) -> ServerResult:
    """Simulate until all is answered; ``policy`` None keeps the number of the beginning."""
    return _Server(scenario, policy).run()


class _Server:
    def __init__(self, scenario: ServerScenario, policy: ScalingPolicy[Any] | None) -> None:
        self._scenario = scenario
        self._policy = policy
        self._state = None if policy is None else policy.initial_state()
        self._clock = Clock()
        self._routing = create_policy(scenario.routing)
        self._served = [Served(request=request) for request in scenario.requests]
        self._unplaced: deque[Served] = deque()
        self._num_routed = 0
        self._samples: deque[LoadSample] = deque()
        self._last: dict[str, ReplicaTotals] = {}
        self._replica_s, self._paid_until_s = 0.0, 0.0
        self._replicas = {
            str(number): SimulatedReplica(
                name=str(number),
                clock=self._clock,
                costs=scenario.costs,
                slot_type=scenario.slot_type,
                engine=scenario.engine,
                state=ReplicaState.READY if number < scenario.num_replicas else ReplicaState.IDLE,
            )
            for number in range(scenario.most)
        }
        self._num_wanted = scenario.num_replicas
        self._changes = [Change(time_s=0.0, num_wanted=self._num_wanted, reason="the beginning")]

    def run(self) -> ServerResult:
        self._clock.start(self._arrivals())
        self._clock.start(self._decisions())
        self._clock.start(self._drains())
        while not self._is_done:
            self._clock.run_until(self._clock.now_s + self._scenario.interval_s)
        self._pay()
        end_s = max((served.end_s for served in self._served if served.end_s is not None), default=0.0)
        return ServerResult(served=self._served, changes=self._changes, replica_s=self._replica_s, end_s=end_s)

    @property
    def _is_done(self) -> bool:
        has_begun = self._num_routed == len(self._served)
        return has_begun and all(not replica.num_samples for replica in self._replicas.values())

    @property
    def _ready(self) -> list[SimulatedReplica]:
        return [replica for replica in self._replicas.values() if replica.state is ReplicaState.READY]

    def _pay(self) -> None:
        """For the time since the last call, in which no replica changed its state."""
        num_paid = sum(replica.state in _PAID for replica in self._replicas.values())
        self._replica_s += num_paid * (self._clock.now_s - self._paid_until_s)
        self._paid_until_s = self._clock.now_s

    def _arrivals(self) -> Process:
        for served in self._served:
            yield max(served.request.arrival_s - self._clock.now_s, 0.0)
            self._unplaced.append(served)
            self._place()

    def _place(self) -> None:
        while self._unplaced and (ready := self._ready):
            loads = [ReplicaLoad(name=replica.name, num_samples=replica.num_samples) for replica in ready]
            affinity = str(self._num_routed)  # each of another conversation
            name = self._routing.choose(RoutedRequest(number=self._num_routed, affinity=affinity), loads)
            self._num_routed += 1
            self._replicas[name].take(self._unplaced.popleft())

    def _decisions(self) -> Process:
        while self._policy is not None:
            yield self._scenario.interval_s
            now_s = self._clock.now_s
            self._samples.append(self._sample())
            while self._samples[0].time_s < now_s - self._policy.look_back_s:
                self._samples.popleft()
            observation = ScalingObservation(
                time_s=now_s,
                unix_s=self._scenario.begin_unix_s + now_s,
                num_wanted=self._num_wanted,
                most=self._scenario.most,
                samples=tuple(self._samples),
            )
            plan, self._state = self._policy.decide(observation, self._state)
            if plan.num_replicas != self._num_wanted:
                self._num_wanted = plan.num_replicas
                self._changes.append(Change(time_s=now_s, num_wanted=self._num_wanted, reason=plan.reason))
                self._resize()

    def _resize(self) -> None:
        self._pay()
        states = {name: replica.state for name, replica in self._replicas.items()}
        num_samples = {name: replica.num_samples for name, replica in self._replicas.items()}
        change = resizing(states, num_samples, self._num_wanted)
        for name in change.kept:
            self._replicas[name].state = ReplicaState.READY
        for name in change.started:
            self._replicas[name].state = ReplicaState.STARTING
            self._clock.start(self._starting(self._replicas[name]))
        for name in change.ended:
            replica = self._replicas[name]
            is_idle = replica.state is ReplicaState.STARTING or not replica.num_samples
            replica.state = ReplicaState.IDLE if is_idle else ReplicaState.DRAINING
        self._place()

    def _starting(self, replica: SimulatedReplica) -> Process:
        began_s = replica.started_s = self._clock.now_s
        yield self._scenario.start_s
        if replica.state is ReplicaState.STARTING and replica.started_s == began_s:
            self._pay()
            replica.state = ReplicaState.READY
            self._place()

    def _drains(self) -> Process:
        while True:
            yield _DRAIN_LOOK_S
            ended = [
                replica
                for replica in self._replicas.values()
                if replica.state is ReplicaState.DRAINING and not replica.num_samples
            ]
            if ended:
                self._pay()
            for replica in ended:
                replica.state = ReplicaState.IDLE

    def _sample(self) -> LoadSample:
        """What a real server's meter tells: counted since the sample before."""
        ready, interval_s = self._ready, self._scenario.interval_s
        first, gaps, busy_s = [0.0, 0.0], [0.0, 0.0], 0.0
        for name, replica in self._replicas.items():
            now, last = replica.totals, self._last.get(name, ReplicaTotals())
            first[0] += now.first_tokens_s - last.first_tokens_s
            first[1] += now.num_first_tokens - last.num_first_tokens
            gaps[0] += now.gaps_s - last.gaps_s
            gaps[1] += now.num_gaps - last.num_gaps
            busy_s += min(now.busy_s - last.busy_s, interval_s) if replica in ready else 0.0
            self._last[name] = ReplicaTotals(**vars(now))
        num_ready = len(ready)
        return LoadSample(
            time_s=self._clock.now_s,
            num_ready=num_ready,
            num_live_samples=len(self._unplaced) + sum(each.num_samples for each in self._replicas.values()),
            num_places=num_ready * self._scenario.engine.max_num_sequences,
            num_waiting=len(self._unplaced) + sum(each.num_waiting for each in self._replicas.values()),
            kv_cache_usage=sum(each.kv_cache_usage for each in ready) / num_ready if ready else None,
            time_to_first_token_s=first[0] / first[1] if first[1] else None,
            inter_token_latency_s=gaps[0] / gaps[1] if gaps[1] else None,
            busy_share=busy_s / interval_s / num_ready if ready else None,
        )
