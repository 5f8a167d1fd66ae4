"""The router: which replica generates which prompt group. Pure bookkeeping: no clock, no process, no I/O.

    submit ──> waiting ──assign──> held by a replica ──finished──> gone (the caller scores it)
                  ^                     │
                  └───replica_left──────┘ with the tokens it had made, where the replica could still hand them over

Replicas are given little ahead of what they compute at once, so that one that leaves loses little and the rest stays
free for whoever has room. A group starts only on a replica whose weights are at least as new as the policy at its
admission: with that, no token is older than ``admitted_version``, which the bound on staleness rests on. Resumed
tokens ask in the same way for a replica that is not older than they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
from rlserve.rollout.groups import PromptGroup

MAX_REMEMBERED_PROMPTS = 4096
"""Prompts whose last replica is remembered for its prefix cache; older ones have long left any cache."""


def sampling_seed(run_seed: int, group_id: str) -> int:
    """Seed of a group's random numbers: the same in every process and after every restart of the group. [0, 2**63)"""
    digest = blake2b(f"{run_seed}/{group_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A group in the router."""

    group: PromptGroup
    min_version: int
    attempt: int
    resumed: tuple[SampleOutput, ...] = ()

    def num_unfinished(self, num_samples: int) -> int:
        """Samples that a replica still has to compute."""
        complete = (FinishReason.STOP, FinishReason.LENGTH)
        return num_samples - sum(sample.finish_reason in complete for sample in self.resumed)

    def with_partials(self, samples: tuple[SampleOutput, ...]) -> _Entry:
        """The next attempt, which carries ``samples`` on."""
        newest = max((int(sample.tokens.weight_versions.max(initial=0)) for sample in samples), default=0)
        return replace(self, resumed=samples, min_version=max(self.min_version, newest))


@dataclass(kw_only=True)
class _Replica:
    version: int
    capacity: int
    """Samples that it may hold."""
    held: dict[str, _Entry] = field(default_factory=dict)
    """By group id."""
    num_samples: int = 0
    """Unfinished samples that it holds."""
    num_tokens: int = 0
    """Prompt and resumed tokens of what it holds: breaks ties between equal numbers of samples."""
    closed: bool = False
    """It is about to leave and gets nothing more."""


class Router:
    """Hands waiting prompt groups to replicas, least loaded first, and takes them back from replicas that leave."""

    def __init__(self, *, sampling: SamplingParams, run_seed: int) -> None:
        """``sampling`` holds for every request; its seed is replaced by the group's own."""
        self._sampling = sampling
        self._run_seed = run_seed
        self._waiting: dict[str, _Entry] = {}
        self._replicas: dict[str, _Replica] = {}
        self._last_replica: OrderedDict[tuple[int, ...], str] = OrderedDict()  # by prompt

    @property
    def num_waiting(self) -> int:
        """Groups that no replica has."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Groups that replicas have."""
        return sum(len(replica.held) for replica in self._replicas.values())

    def join(self, replica_id: str, *, version: int, capacity: int) -> None:
        """Add a replica that serves weights of ``version`` and may hold ``capacity`` samples."""
        assert replica_id not in self._replicas, f"replica {replica_id} is already there"
        assert capacity >= 1
        self._replicas[replica_id] = _Replica(version=version, capacity=capacity)

    def close(self, replica_id: str) -> None:
        """Give nothing more to a replica that is about to leave; what it has may still finish there."""
        self._replicas[replica_id].closed = True

    def set_version(self, replica_id: str, version: int) -> None:
        """Note that a replica now serves ``version``, which never goes back (I3)."""
        replica = self._replicas[replica_id]
        assert version >= replica.version, f"replica {replica_id} went back from version {replica.version} to {version}"
        replica.version = version

    def submit(self, group: PromptGroup, *, admitted_version: int, attempt: int = 0) -> None:
        """Put a group in the waiting queue. ``attempt`` is the ledger's, above 0 after a resume of the run."""
        assert not self._has(group.id), f"prompt group {group.id} is already in the router"
        self._waiting[group.id] = _Entry(group=group, min_version=admitted_version, attempt=attempt)

    def assign(self) -> dict[str, list[Request]]:
        """Give waiting groups, the oldest of the data set first, to replicas with room: requests by replica id.

        A prompt goes back to the replica that had it last, which may still cache it; else to the least loaded one.
        """
        assigned: dict[str, list[Request]] = {}
        for entry in sorted(self._waiting.values(), key=lambda entry: entry.group.position):
            if all(replica.num_samples >= replica.capacity for replica in self._replicas.values()):
                break
            replica_id = self._choose(entry)
            if replica_id is None:
                continue
            self._hold(replica_id, entry)
            assigned.setdefault(replica_id, []).append(self._request(entry))
        return assigned

    def finished(self, replica_id: str, output: RequestOutput) -> PromptGroup | None:
        """Take note that a replica is done with a request, and return its group.

        Returns None for an answer that came too late: the replica left meanwhile, or the group started over.
        """
        replica = self._replicas.get(replica_id)
        if replica is None:
            return None
        group_id, _, attempt = output.request_id.rpartition("#")
        entry = replica.held.get(group_id)
        if entry is None or entry.attempt != int(attempt):
            return None
        self._release(replica, group_id)
        return entry.group

    def replica_left(self, replica_id: str, partials: Iterable[RequestOutput] | None = None) -> list[str]:
        """Remove a replica; all that it had waits again, as the next attempt. Returns the ids of those groups.

        With ``partials``, what the replica's ``abort`` returned, the tokens made so far go along. Without (it died),
        groups go on from what they had before they got there.
        """
        replica = self._replicas.pop(replica_id)
        samples_by_request = {output.request_id: output.samples for output in partials or ()}
        for entry in replica.held.values():
            samples = samples_by_request.get(_request_id(entry), entry.resumed)
            again = replace(entry.with_partials(samples), attempt=entry.attempt + 1)
            self._waiting[entry.group.id] = again
        self._last_replica = OrderedDict(item for item in self._last_replica.items() if item[1] != replica_id)
        return list(replica.held)

    def check_integrity(self) -> None:
        """Assert that each group is in one place and that every replica's load is the sum of what it holds."""
        places = [*self._waiting, *(group_id for replica in self._replicas.values() for group_id in replica.held)]
        assert len(places) == len(set(places)), f"a prompt group is in two places: {sorted(places)}"
        for replica_id, replica in self._replicas.items():
            held = replica.held.values()
            num_samples = sum(entry.num_unfinished(self._sampling.n) for entry in held)
            assert replica.num_samples == num_samples, f"replica {replica_id}: {replica.num_samples} != {num_samples}"
            assert replica.num_tokens == sum(map(_num_tokens, held))
            assert num_samples <= replica.capacity or len(held) == 1, f"replica {replica_id} is over its capacity"
            for entry in held:
                assert replica.version >= entry.min_version, f"{entry.group.id} is on {replica_id}, which is too old"

    def _has(self, group_id: str) -> bool:
        return group_id in self._waiting or any(group_id in replica.held for replica in self._replicas.values())

    def _choose(self, entry: _Entry) -> str | None:
        """The replica that should get ``entry`` now, or None. One that is idle has room for a group of any size."""
        num_samples = entry.num_unfinished(self._sampling.n)
        fitting = {
            replica_id: replica
            for replica_id, replica in self._replicas.items()
            if not replica.closed
            and replica.version >= entry.min_version
            and (replica.num_samples + num_samples <= replica.capacity or not replica.held)
        }
        last = self._last_replica.get(entry.group.prompt_token_ids)
        if last in fitting:
            return last
        return min(
            fitting,
            key=lambda replica_id: (
                fitting[replica_id].num_samples / fitting[replica_id].capacity,
                fitting[replica_id].num_tokens,
            ),
            default=None,
        )

    def _hold(self, replica_id: str, entry: _Entry) -> None:
        replica = self._replicas[replica_id]
        del self._waiting[entry.group.id]
        replica.held[entry.group.id] = entry
        replica.num_samples += entry.num_unfinished(self._sampling.n)
        replica.num_tokens += _num_tokens(entry)
        self._last_replica[entry.group.prompt_token_ids] = replica_id
        self._last_replica.move_to_end(entry.group.prompt_token_ids)
        if len(self._last_replica) > MAX_REMEMBERED_PROMPTS:
            self._last_replica.popitem(last=False)

    def _release(self, replica: _Replica, group_id: str) -> None:
        entry = replica.held.pop(group_id)
        replica.num_samples -= entry.num_unfinished(self._sampling.n)
        replica.num_tokens -= _num_tokens(entry)

    def _request(self, entry: _Entry) -> Request:
        sampling = replace(self._sampling, seed=sampling_seed(self._run_seed, entry.group.id))
        return Request(
            id=_request_id(entry),
            prompt_token_ids=entry.group.prompt_token_ids,
            sampling=sampling,
            priority=entry.group.position,
            resumed=entry.resumed,
        )


def _request_id(entry: _Entry) -> str:
    return f"{entry.group.id}#{entry.attempt}"


def _num_tokens(entry: _Entry) -> int:
    return len(entry.group.prompt_token_ids) + sum(len(sample.tokens) for sample in entry.resumed)
