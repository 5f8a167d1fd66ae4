"""The quick dispatcher gives the same groups to the same replicas as the router of a real run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.requests.request import RequestOutput, SamplingParams
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Router
from rlserve.simulate.dispatch import Dispatcher
from rlserve.simulate.work import Group, GroupWork, Sample

REPLICAS = ("a", "b", "c")


class Pair:
    """Both, told the same."""

    def __init__(self) -> None:
        self.router, self.dispatcher = Router(), Dispatcher()
        self.held: dict[str, tuple[str, Group]] = {}
        self.attempts: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.closed: set[str] = set()
        self.num_groups = 0

    def submit(self, num_samples: int, num_prompt_tokens: int, version: int) -> None:
        position = self.num_groups
        self.num_groups += 1
        self.router.submit(
            RequestSpec(
                id=RequestId(kind=RequestKind.TRAINING, name=str(position)),
                prompt_token_ids=(position, *range(num_prompt_tokens)),
                sampling=SamplingParams(n=num_samples, max_tokens=4),
                position=position,
                min_version=version,
            ),
            time_s=0.0,
        )
        lengths = (9,) * num_samples
        work = GroupWork(num_prompt_tokens=num_prompt_tokens + 1, lengths=lengths)
        group = Group(id=str(position), position=position, min_version=version, work=work)
        group.unfinished = [Sample(group=group, length=9) for _ in lengths]
        self.dispatcher.submit(group)

    def assign(self) -> None:
        expected = [
            (replica_id, RequestId.parse(request.id).name)
            for replica_id, requests in self.router.assign(time_s=0.0).items()
            for request in requests
        ]
        found = self.dispatcher.assign()
        assert sorted((replica_id, group.id) for replica_id, group in found) == sorted(expected)
        self.held |= {group.id: (replica_id, group) for replica_id, group in found}
        assert self.dispatcher.num_waiting == self.router.num_waiting(RequestKind.TRAINING)

    def finish(self, name: str) -> None:
        replica_id, group = self.held.pop(name)
        request_id = RequestId(kind=RequestKind.TRAINING, name=name, attempt=self.attempts.get(name, 0))
        assert self.router.finished(replica_id, RequestOutput(request_id=str(request_id), samples=()))
        self.dispatcher.finished(replica_id, group)

    def join(self, replica_id: str, version: int, capacity: int) -> None:
        self.versions[replica_id] = version
        self.router.join(replica_id, version=version, capacity=capacity, time_s=0.0)
        self.dispatcher.join(replica_id, version=version, capacity=capacity)

    def leave(self, replica_id: str) -> None:
        del self.versions[replica_id]
        self.closed.discard(replica_id)
        self.router.replica_left(replica_id, time_s=0.0)
        for group in self.dispatcher.left(replica_id):
            del self.held[group.id]
            self.attempts[group.id] = self.attempts.get(group.id, 0) + 1
            self.dispatcher.submit(group)


@given(st.data())
def test_both_choose_alike(data: st.DataObject) -> None:
    pair, newest = Pair(), 0
    for _ in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(("submit", "join", "leave", "finish", "version", "close"))):
            case "submit":
                for _ in range(data.draw(st.integers(1, 4))):
                    pair.submit(data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3)), newest)
            case "join":
                absent = [each for each in REPLICAS if each not in pair.versions]
                if absent:
                    pair.join(data.draw(st.sampled_from(absent)), newest, data.draw(st.integers(1, 6)))
            case "leave" if pair.versions:
                pair.leave(data.draw(st.sampled_from(sorted(pair.versions))))
            case "finish" if pair.held:
                pair.finish(data.draw(st.sampled_from(sorted(pair.held))))
            case "version" if pair.versions:
                newest += 1
                replica_id = data.draw(st.sampled_from(sorted(pair.versions)))
                pair.versions[replica_id] = newest
                pair.router.set_version(replica_id, newest)
                pair.dispatcher.set_version(replica_id, newest)
            case "close" if pair.versions:
                replica_id = data.draw(st.sampled_from(sorted(pair.versions)))
                pair.router.close(replica_id)
                pair.dispatcher.close(replica_id)
        pair.assign()
