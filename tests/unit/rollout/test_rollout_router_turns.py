"""Where the router sends later turns of conversations, and when."""

from __future__ import annotations

from rollout_builders import make_group, make_sample

from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests


def routed(num_samples: int, *positions: int, **capacities: int) -> Router:
    """A router with groups that wait, and a replica for each named capacity."""
    router, requests = Router(), TrainingRequests(sampling=SamplingParams(n=num_samples), run_seed=0)
    for replica_id, capacity in capacities.items():
        router.join(replica_id, version=0, capacity=capacity, time_s=0.0)
    for position in positions:
        router.submit(requests.of(make_group(position), min_version=0), time_s=0.0)
    return router


def turn(name: str, prompt: tuple[int, ...], *, position: int, continues: tuple[int, ...] = ()) -> RequestSpec:
    return RequestSpec(
        id=RequestId(kind=RequestKind.TURN, name=name),
        prompt_token_ids=prompt,
        sampling=SamplingParams(n=1),
        position=position,
        continues=continues,
    )


def answer(router: Router, replica_id: str, request: Request) -> None:
    samples = (make_sample(0, (0, 0), finish=FinishReason.STOP),)
    router.finished(replica_id, RequestOutput(request_id=request.id, samples=samples))


def test_the_next_turn_of_a_conversation_goes_where_the_last_was() -> None:
    router = routed(1, 0, 1, a=8, b=8)
    assigned = router.assign(time_s=0.0)
    for replica_id, [request] in assigned.items():
        answer(router, replica_id, request)
    [asked] = assigned["b"]
    assert asked.id == "training/0:1#0", "on the replica that is not the first choice of an idle pool"
    second = turn("0:1/0.1", (*asked.prompt_token_ids, 5, 6), position=1, continues=asked.prompt_token_ids)
    third = turn("0:1/0.2", (*second.prompt_token_ids, 7), position=1, continues=second.prompt_token_ids)
    for spec in (second, third):
        router.submit(spec, time_s=0.0)
        [(replica_id, [request])] = router.assign(time_s=0.0).items()
        assert (replica_id, request.id) == ("b", str(spec.id))
        answer(router, replica_id, request)
    router.check_integrity()


def test_turns_share_the_room_of_prompt_groups_and_go_in_the_order_of_these() -> None:
    router = routed(2, 5, 6, a=3)
    for position in (4, 7):
        router.submit(turn(f"0:{position}/0.1", (position,), position=position), time_s=0.0)
    [(_, requests)] = router.assign(time_s=0.0).items()
    assert [request.id for request in requests] == ["turn/0:4/0.1#0", "training/0:5#0"], "room for three samples"
    assert (router.num_waiting(RequestKind.TRAINING), router.num_waiting(RequestKind.TURN)) == (1, 1)
    router.check_integrity()
