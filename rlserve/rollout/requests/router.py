"""The router: which replica answers which request. Pure bookkeeping: times are the caller's; no process, no I/O.

    submit ──> waiting ──assign──> held by a replica ──finished──> gone (the caller has the answer)
                  ^                     │
                  └───replica_left──────┘ with the tokens it had made, where the replica could still hand them over
    waiting | held ──withdraw | expire──> gone

All kinds of requests share the replicas, the more urgent first. Replicas are given little ahead of what they compute at
once, so that one that leaves loses little and the rest stays free for whoever has room: nothing is added to a replica
whose samples of the same kind and of more urgent ones would exceed its capacity. What is less urgent takes no room from
what is more so; the engine lets that go first. Clients are the most urgent and have a capacity of their own, a share of
it: so they are never starved, and the rest is never less than what they leave.

A request starts only on a replica whose weights are as new as it asks for, and resumed tokens ask in the same way for a
replica that is not older than they are.

A request makes progress when it is submitted, gets to a replica or comes back from one, when the replica that holds it
makes a step, and, while it waits, when a replica that could take it makes one. Where ``timeout_s`` passes without, it
expires. One that is held is given twice that: its replica's own deadline is the same, and if the replica is lost the
request moves on.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.rollout.requests.base import URGENCY, RequestId, RequestKind, RequestSpec

MAX_REMEMBERED_PROMPTS = 4096
"""Prompts whose last replica is remembered for its prefix cache; older ones have long left any cache."""
_URGENCY_STRIDE = 1 << 30
"""Of the engine's priorities, which are 32-bit numbers: between two urgencies lie all positions."""
_HELD_PATIENCE = 2


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A request in the router."""

    spec: RequestSpec
    id: RequestId
    """Of the attempt under way."""
    min_version: int
    since_s: float
    """When it came to where it is."""
    resumed: tuple[SampleOutput, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples that a replica still has to compute."""
        complete = (FinishReason.STOP, FinishReason.LENGTH)
        return self.spec.sampling.n - sum(sample.finish_reason in complete for sample in self.resumed)

    @property
    def num_tokens(self) -> int:
        """Prompt and resumed tokens."""
        return len(self.spec.prompt_token_ids) + sum(len(sample.tokens) for sample in self.resumed)

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return -URGENCY[self.id.kind], self.spec.position

    def next_attempt(self, samples: tuple[SampleOutput, ...], *, time_s: float) -> _Entry:
        """The attempt after this one, which carries ``samples`` on."""
        newest = max((int(sample.tokens.weight_versions.max(initial=0)) for sample in samples), default=0)
        return replace(
            self,
            id=replace(self.id, attempt=self.id.attempt + 1),
            min_version=max(self.min_version, newest),
            since_s=time_s,
            resumed=samples,
        )

    def request(self) -> Request:
        """What the engine is given."""
        return Request(
            id=str(self.id),
            prompt_token_ids=self.spec.prompt_token_ids,
            sampling=self.spec.sampling,
            priority=self.spec.position - _URGENCY_STRIDE * URGENCY[self.id.kind],
            cache_salt=self.spec.cache_salt,
            resumed=self.resumed,
        )


@dataclass(kw_only=True)
class _Replica:
    version: int
    capacity: int
    """Samples that it may hold."""
    client_capacity: int
    """Of these, samples of clients."""
    progress_s: float
    """When it last made a step, or joined."""
    held: dict[RequestId, _Entry] = field(default_factory=dict)
    """By the id of the first attempt, as everywhere here."""
    num_samples: Counter[RequestKind] = field(default_factory=Counter)
    """Unfinished samples that it holds."""
    num_tokens: int = 0
    """Prompt and resumed tokens of what it holds: breaks ties between equal numbers of samples."""
    closed: bool = False
    """It is about to leave and gets nothing more."""
    spared: bool = False
    """It gets nothing more for now."""

    def load(self, kind: RequestKind) -> int:
        """Samples that go before or beside those of ``kind``."""
        return sum(number for other, number in self.num_samples.items() if URGENCY[other] >= URGENCY[kind])

    def is_full(self, kind: RequestKind) -> bool:
        """Whether there is no room for any request of ``kind``."""
        return not self._is_free_for(kind) and self.load(kind) >= self._capacity(kind)

    def suits(self, entry: _Entry) -> bool:
        """Whether it may answer the request at all."""
        return not self.closed and not self.spared and self.version >= entry.min_version

    def has_room(self, entry: _Entry) -> bool:
        """A replica with nothing to do has room for a request of any size."""
        kind = entry.id.kind
        return self._is_free_for(kind) or self.load(kind) + entry.num_samples <= self._capacity(kind)

    def _is_free_for(self, kind: RequestKind) -> bool:
        """Whether it has nothing to do but for clients, who keep no large request away. Their own share is strict."""
        return kind is not RequestKind.CLIENT and self.load(kind) == self.num_samples[RequestKind.CLIENT]

    def _capacity(self, kind: RequestKind) -> int:
        return self.client_capacity if kind is RequestKind.CLIENT else self.capacity


@dataclass(frozen=True, kw_only=True)
class Expired:
    """A request that made no progress for as long as it may, and is no longer in the router."""

    id: RequestId
    replica_id: str | None
    """Who has it; None: it waited."""
    min_version: int
    """Of the weights that it needs."""
    waited_s: float


class Router:
    """Hands waiting requests to replicas, least loaded first, and takes them back from replicas that leave."""

    def __init__(self, num_client_places: int = 0) -> None:
        """``num_client_places``: samples of clients that a replica may hold."""
        self._num_client_places = num_client_places
        self._waiting: dict[RequestId, _Entry] = {}
        self._replicas: dict[str, _Replica] = {}
        self._last_replica: OrderedDict[tuple[int, ...], str] = OrderedDict()  # by prompt

    def num_waiting(self, kind: RequestKind) -> int:
        """Requests that no replica has."""
        return sum(request_id.kind is kind for request_id in self._waiting)

    def num_running(self, kind: RequestKind) -> int:
        """Requests that replicas have."""
        return sum(request_id.kind is kind for replica in self._replicas.values() for request_id in replica.held)

    def join(self, replica_id: str, *, version: int, capacity: int, time_s: float) -> None:
        """Add a replica that serves weights of ``version`` and may hold ``capacity`` samples."""
        assert replica_id not in self._replicas, f"replica {replica_id} is already there"
        assert capacity >= 1
        self._replicas[replica_id] = _Replica(
            version=version, capacity=capacity, client_capacity=self._num_client_places, progress_s=time_s
        )

    def version(self, replica_id: str) -> int:
        """Of the weights that a replica serves, as far as the router has heard: it may have newer ones."""
        return self._replicas[replica_id].version

    def close(self, replica_id: str) -> None:
        """Give nothing more to a replica that is about to leave; what it has may still finish there."""
        self._replicas[replica_id].closed = True

    def spare(self, replica_id: str, is_spared: bool) -> None:
        """Give nothing more to a replica until it is no longer spared; what it has stays with it."""
        self._replicas[replica_id].spared = is_spared

    def set_version(self, replica_id: str, version: int) -> None:
        """Note that a replica now serves ``version``, which never goes back (I3)."""
        replica = self._replicas[replica_id]
        assert version >= replica.version, f"replica {replica_id} went back from version {replica.version} to {version}"
        replica.version = version

    def note_step(self, replica_id: str, *, time_s: float) -> None:
        """A replica has made a step."""
        self._replicas[replica_id].progress_s = time_s

    def submit(self, spec: RequestSpec, *, time_s: float) -> None:
        """Put a request in the waiting queue."""
        key = spec.id.first
        is_here = key in self._waiting or self._holder(key) is not None
        assert not is_here, f"request {spec.id} is already in the router"
        self._waiting[key] = _Entry(spec=spec, id=spec.id, min_version=spec.min_version, since_s=time_s)

    def assign(self, *, time_s: float) -> dict[str, list[Request]]:
        """Give waiting requests, in their order, to replicas with room: requests by replica id.

        A prompt, or the next turn of one, goes back to the replica that had it last, which may still cache it; else to
        the least loaded one.
        """
        assigned: dict[str, list[Request]] = {}
        for entry in sorted(self._waiting.values(), key=lambda entry: entry.order):
            kind = entry.id.kind
            if all(replica.is_full(kind) for replica in self._replicas.values()):
                if kind is RequestKind.CLIENT:
                    continue  # their share is full; there may be room for others
                break  # nor is there room for anything less urgent
            replica_id = self._choose(entry)
            if replica_id is not None:
                self._hold(replica_id, replace(entry, since_s=time_s))
                assigned.setdefault(replica_id, []).append(entry.request())
        return assigned

    def finished(self, replica_id: str, output: RequestOutput) -> RequestId | None:
        """Take note that a replica is done with a request, and return its id.

        Returns None for an answer that came too late: the replica left meanwhile, the request started over, or nobody
        waits for it any more.
        """
        replica, request_id = self._replicas.get(replica_id), RequestId.parse(output.request_id)
        if replica is None:
            return None
        entry = replica.held.get(request_id.first)
        if entry is None or entry.id != request_id:
            return None
        self._release(replica, entry)
        return request_id

    def replica_left(
        self, replica_id: str, partials: Iterable[RequestOutput] | None = None, *, time_s: float
    ) -> list[RequestId]:
        """Remove a replica; all that it had waits again, as the next attempt. Returns the ids that it had.

        With ``partials``, what the replica's ``abort`` returned, the tokens made so far go along. Without (it died),
        requests go on from what they had before they got there.
        """
        replica = self._replicas.pop(replica_id)
        samples_by_request = {output.request_id: output.samples for output in partials or ()}
        for key, entry in replica.held.items():
            samples = samples_by_request.get(str(entry.id), entry.resumed)
            self._waiting[key] = entry.next_attempt(samples, time_s=time_s)
        self._last_replica = OrderedDict(item for item in self._last_replica.items() if item[1] != replica_id)
        return [entry.id for entry in replica.held.values()]

    def withdraw(self, request_id: RequestId) -> tuple[str, RequestId] | None:
        """Nobody waits for a request any more; whatever becomes of it is passed over. Nothing if it is not here.

        Returns which replica has it, and the id of the attempt that it has, if one does.
        """
        key = request_id.first
        if self._waiting.pop(key, None) is not None or (replica_id := self._holder(key)) is None:
            return None
        replica = self._replicas[replica_id]
        entry = replica.held[key]
        self._release(replica, entry)
        return replica_id, entry.id

    def expire(self, *, time_s: float) -> list[Expired]:
        """Withdraw, and return, what made no progress for its ``timeout_s``."""
        expired = list(self._overdue(time_s))
        for found in expired:
            self.withdraw(found.id)
        return expired

    def check_integrity(self) -> None:
        """Assert that each request is in one place and that every replica's load is the sum of what it holds."""
        places = [*self._waiting, *(key for replica in self._replicas.values() for key in replica.held)]
        assert len(places) == len(set(places)), f"a request is in two places: {sorted(map(str, places))}"
        for replica_id, replica in self._replicas.items():
            held = replica.held.values()
            num_samples: Counter[RequestKind] = Counter()
            for entry in held:
                num_samples[entry.id.kind] += entry.num_samples
                assert replica.version >= entry.min_version, f"{entry.id} is on {replica_id}, which is too old"
            assert replica.num_samples == num_samples, f"replica {replica_id}: {replica.num_samples} != {num_samples}"
            assert replica.num_tokens == sum(entry.num_tokens for entry in held)
            for kind, number in num_samples.items():
                is_alone = sum(entry.id.kind is kind for entry in held) == 1
                assert kind is not RequestKind.CLIENT or number <= replica.client_capacity, f"{replica_id}: {number}"
                assert number <= replica.capacity or is_alone, f"replica {replica_id} is over its capacity of {kind}"

    def _holder(self, key: RequestId) -> str | None:
        return next((replica_id for replica_id, replica in self._replicas.items() if key in replica.held), None)

    def _choose(self, entry: _Entry) -> str | None:
        """The replica that should get ``entry`` now, or None."""
        fitting = {
            replica_id: replica
            for replica_id, replica in self._replicas.items()
            if replica.suits(entry) and replica.has_room(entry)
        }
        for prompt in (entry.spec.prompt_token_ids, entry.spec.continues):
            if (last := self._last_replica.get(prompt)) in fitting:
                return last
        return min(
            fitting,
            key=lambda replica_id: (
                fitting[replica_id].load(entry.id.kind) / fitting[replica_id].capacity,
                fitting[replica_id].num_tokens,
            ),
            default=None,
        )

    def _hold(self, replica_id: str, entry: _Entry) -> None:
        replica, key, prompt = self._replicas[replica_id], entry.id.first, entry.spec.prompt_token_ids
        del self._waiting[key]
        replica.held[key] = entry
        replica.num_samples[entry.id.kind] += entry.num_samples
        replica.num_tokens += entry.num_tokens
        self._last_replica[prompt] = replica_id
        self._last_replica.move_to_end(prompt)
        if len(self._last_replica) > MAX_REMEMBERED_PROMPTS:
            self._last_replica.popitem(last=False)

    def _release(self, replica: _Replica, entry: _Entry) -> None:
        del replica.held[entry.id.first]
        replica.num_samples[entry.id.kind] -= entry.num_samples
        replica.num_tokens -= entry.num_tokens

    def _overdue(self, time_s: float) -> Iterator[Expired]:
        for entry in self._waiting.values():
            steps_s = (replica.progress_s for replica in self._replicas.values() if replica.suits(entry))
            yield from _expired(entry, None, max(steps_s, default=entry.since_s), time_s)
        for replica_id, replica in self._replicas.items():
            for entry in replica.held.values():
                yield from _expired(entry, replica_id, replica.progress_s, time_s)


def _expired(entry: _Entry, replica_id: str | None, step_s: float, time_s: float) -> Iterator[Expired]:
    """The entry, if it is overdue; ``step_s`` is when a replica last made a step for it."""
    waited_s, timeout_s = time_s - max(entry.since_s, step_s), entry.spec.timeout_s
    if timeout_s is not None and waited_s > timeout_s * (1 if replica_id is None else _HELD_PATIENCE):
        yield Expired(id=entry.id, replica_id=replica_id, min_version=entry.min_version, waited_s=waited_s)
