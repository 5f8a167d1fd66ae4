"""Clients beside training: each has its share of every replica, whatever the other asks for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_builders import make_sample

from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Router


def spec(kind: RequestKind, position: int, *, n: int = 1) -> RequestSpec:
    return RequestSpec(
        id=RequestId(kind=kind, name=str(position)),
        prompt_token_ids=(int(kind is RequestKind.CLIENT), position),
        sampling=SamplingParams(n=n),
        position=position,
    )


def submit(router: Router, kind: RequestKind, number: int, *, n: int = 1) -> None:
    for position in range(number):
        router.submit(spec(kind, position, n=n), time_s=0.0)


def assigned(router: Router) -> Counter[RequestKind]:
    """How many requests of each kind found a place now."""
    requests = [request for given in router.assign(time_s=0.0).values() for request in given]
    router.check_integrity()
    return Counter(RequestId.parse(request.id).kind for request in requests)


def test_clients_have_their_share_first_and_the_rest_is_for_training() -> None:
    router = Router(num_client_places=2)
    router.join("a", version=0, capacity=8, time_s=0.0)
    submit(router, RequestKind.CLIENT, 10)
    submit(router, RequestKind.TRAINING, 10)
    assert assigned(router) == {RequestKind.CLIENT: 2, RequestKind.TRAINING: 6}


def test_clients_are_not_starved_by_training() -> None:
    router = Router(num_client_places=2)
    router.join("a", version=0, capacity=8, time_s=0.0)
    submit(router, RequestKind.TRAINING, 10)
    assert assigned(router) == {RequestKind.TRAINING: 8}
    submit(router, RequestKind.CLIENT, 10)
    [clients] = router.assign(time_s=0.0).values()
    assert len(clients) == 2
    assert all(request.priority < 0 for request in clients), "the engine lets them go first"


def test_a_group_as_large_as_the_replica_is_not_kept_away_by_clients() -> None:
    router = Router(num_client_places=1)
    router.join("a", version=0, capacity=4, time_s=0.0)
    submit(router, RequestKind.CLIENT, 1)
    submit(router, RequestKind.TRAINING, 2, n=4)
    assert assigned(router) == {RequestKind.CLIENT: 1, RequestKind.TRAINING: 1}
    assert assigned(router) == {}


def test_the_only_place_of_a_replica_is_not_taken_from_training() -> None:
    router = Router(num_client_places=1)
    router.join("a", version=0, capacity=1, time_s=0.0)
    submit(router, RequestKind.CLIENT, 2)
    submit(router, RequestKind.TRAINING, 2)
    assert assigned(router) == {RequestKind.CLIENT: 1, RequestKind.TRAINING: 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["client", "training", "finish", "leave"]), max_size=60), st.integers(1, 3))
def test_no_replica_ever_holds_more_of_clients_than_their_share(actions: list[str], num_places: int) -> None:
    router = Router(num_client_places=num_places)
    held: dict[str, list[Request]] = {"a": [], "b": []}
    for name in held:
        router.join(name, version=0, capacity=4, time_s=0.0)
    for position, action in enumerate(actions):
        if action in ("client", "training"):
            router.submit(spec(RequestKind(action), position), time_s=0.0)
        elif action == "finish" and (busy := [name for name in held if held[name]]):
            request = held[busy[0]].pop(0)
            sample = make_sample(0, (0,), finish=FinishReason.STOP)
            assert router.finished(busy[0], RequestOutput(request_id=request.id, samples=(sample,))) is not None
        elif action == "leave":
            router.replica_left("a", time_s=0.0)
            held["a"] = []
            router.join("a", version=0, capacity=4, time_s=0.0)
        for name, requests in router.assign(time_s=0.0).items():
            held[name] += requests
        router.check_integrity()
        for requests in held.values():
            kinds = Counter(RequestId.parse(request.id).kind for request in requests)
            assert kinds[RequestKind.CLIENT] <= num_places
            assert kinds[RequestKind.TRAINING] <= 4
