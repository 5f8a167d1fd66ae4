"""Whom the router gives what, and what happens to it when a replica leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rollout_builders import make_group, make_sample

from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import MAX_REMEMBERED_PROMPTS, Expired, Router
from rlserve.rollout.requests.training import TrainingRequests, sampling_seed


def make_requests(num_samples: int) -> TrainingRequests:
    """Requests for training."""
    return TrainingRequests(sampling=SamplingParams(n=num_samples, max_tokens=9, temperature=0.5), run_seed=11)


class Routed(Router):
    """A router with a replica of version 0 for each named capacity; groups have ``num_samples`` samples."""

    def __init__(self, *, num_samples: int = 2, **capacities: int) -> None:
        super().__init__()
        self.requests = make_requests(num_samples)
        for replica_id, capacity in capacities.items():
            self.join(replica_id, version=0, capacity=capacity, time_s=0.0)

    def submit_group(self, group: PromptGroup, *, version: int = 0, attempt: int = 0) -> None:
        self.submit(self.requests.of(group, min_version=version, attempt=attempt), time_s=0.0)

    def assign_now(self) -> dict[str, list[Request]]:
        return self.assign(time_s=0.0)


def submit(router: Routed, *positions: int, version: int = 0) -> None:
    """Submit groups with prompts of their own."""
    for position in positions:
        router.submit_group(make_group(position), version=version)


def evaluation(
    position: int, *, n: int = 1, version: int = 0, timeout_s: float | None = None, prompt: tuple[int, ...] = ()
) -> RequestSpec:
    """A request of the more urgent kind."""
    return RequestSpec(
        id=RequestId(kind=RequestKind.EVALUATION, name=f"20/held_out:{position}"),
        prompt_token_ids=prompt or (8, position),
        sampling=SamplingParams(n=n),
        position=position,
        min_version=version,
        timeout_s=timeout_s,
    )


def assign(router: Routed) -> dict[str, list[str]]:
    """Assign and return the ids of the requests, without the kind of those for training."""
    assigned = {
        key: [request.id.removeprefix("training/") for request in requests]
        for key, requests in router.assign_now().items()
    }
    router.check_integrity()
    return assigned


def training_id(group_id: str, attempt: int = 0) -> RequestId:
    return RequestId(kind=RequestKind.TRAINING, name=group_id, attempt=attempt)


def output_of(request: Request, *, finish: FinishReason | None = FinishReason.STOP) -> RequestOutput:
    """A whole answer."""
    samples = tuple(make_sample(index, (0, 0), finish=finish) for index in range(request.sampling.n))
    return RequestOutput(request_id=request.id, samples=samples)


def test_a_request_says_what_to_sample_and_how() -> None:
    router = Routed(a=2)
    router.submit_group(make_group(5), version=0, attempt=3)
    [request] = router.assign_now()["a"]
    assert (request.id, request.prompt_token_ids, request.priority, request.resumed) == (
        "training/0:5#3",
        (7, 5),
        5,
        (),
    )
    assert (request.sampling.n, request.sampling.max_tokens, request.sampling.temperature) == (2, 9, 0.5)
    assert request.sampling.seed == sampling_seed(11, "0:5")


def test_the_salt_of_a_request_goes_to_the_engine() -> None:
    router = Routed(a=8)
    router.submit(replace(evaluation(0), cache_salt="of one client"), time_s=0.0)
    ((request,),) = router.assign_now().values()
    assert request.cache_salt == "of one client"


def test_the_seed_is_stable_and_differs_by_run_and_group() -> None:
    assert sampling_seed(0, "0:0") == 8505459832554986233
    seeds = {sampling_seed(run_seed, f"0:{row}") for run_seed in range(10) for row in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_groups_spread_over_the_least_loaded_replicas_in_order() -> None:
    router = Routed(a=8, b=8)
    submit(router, 3, 0, 2, 1)
    assert assign(router) == {"a": ["0:0#0", "0:2#0"], "b": ["0:1#0", "0:3#0"]}
    assert (router.num_waiting(RequestKind.TRAINING), router.num_running(RequestKind.TRAINING)) == (0, 4)


def test_load_counts_by_capacity() -> None:
    router = Routed(small=8, large=16)
    submit(router, *range(6))
    assert {key: len(ids) for key, ids in assign(router).items()} == {"small": 2, "large": 4}


def test_equal_numbers_of_samples_go_to_the_replica_with_fewer_tokens() -> None:
    router = Routed(a=8, b=8)
    router.submit_group(make_group(0, prompt_token_ids=(1,) * 50), version=0)
    submit(router, 1, 2)
    assert assign(router) == {"a": ["0:0#0"], "b": ["0:1#0", "0:2#0"]}


def test_what_does_not_fit_waits_in_the_router() -> None:
    router = Routed(a=4)
    submit(router, *range(5))
    assert assign(router) == {"a": ["0:0#0", "0:1#0"]}
    assert (router.num_waiting(RequestKind.TRAINING), router.num_running(RequestKind.TRAINING)) == (3, 2)
    assert assign(router) == {}


def test_an_idle_replica_takes_a_group_larger_than_its_capacity() -> None:
    router = Routed(num_samples=8, a=3, b=3)
    submit(router, 0, 1, 2)
    assert assign(router) == {"a": ["0:0#0"], "b": ["0:1#0"]}


def test_finished_groups_make_room() -> None:
    router = Routed(a=2)
    submit(router, 0, 1)
    [request] = router.assign_now()["a"]
    assert router.finished("a", output_of(request)) == training_id("0:0")
    assert assign(router) == {"a": ["0:1#0"]}


def test_a_prompt_goes_back_to_the_replica_that_may_cache_it() -> None:
    router = Routed(a=8, b=8)
    router.submit_group(make_group(0, prompt_token_ids=(1, 2)), version=0)
    router.submit_group(make_group(1, prompt_token_ids=(1, 2)), version=0)
    router.submit_group(make_group(2, prompt_token_ids=(3, 4)), version=0)
    assert assign(router) == {"a": ["0:0#0", "0:1#0"], "b": ["0:2#0"]}


def test_a_full_replica_is_not_waited_for_because_it_caches_the_prompt() -> None:
    router = Routed(a=2, b=2)
    for position in range(2):
        router.submit_group(make_group(position, prompt_token_ids=(1, 2)), version=0)
    assert assign(router) == {"a": ["0:0#0"], "b": ["0:1#0"]}


def test_no_more_prompts_are_remembered_than_the_bound() -> None:
    router = Routed(num_samples=1, a=10 * MAX_REMEMBERED_PROMPTS, b=10 * MAX_REMEMBERED_PROMPTS)
    submit(router, *range(MAX_REMEMBERED_PROMPTS + 1))
    first = router.assign_now()
    assert first["a"][0].id == "training/0:0#0"
    router.submit_group(make_group(90000, prompt_token_ids=(7, 0)), version=0)  # forgotten: goes by load
    router.submit_group(make_group(90001, prompt_token_ids=(7, 2)), version=0)  # remembered: a had it
    assert {key: [request.id for request in requests] for key, requests in router.assign_now().items()} == {
        "b": ["training/0:90000#0"],
        "a": ["training/0:90001#0"],
    }


def test_a_group_waits_for_a_replica_that_is_as_new_as_its_admission() -> None:
    router = Routed(old=8)
    router.join("new", version=2, capacity=2, time_s=0.0)
    submit(router, 0, 1, version=2)
    submit(router, 2, version=0)
    assert assign(router) == {"new": ["0:0#0"], "old": ["0:2#0"]}
    router.set_version("old", 2)
    assert assign(router) == {"old": ["0:1#0"]}


def test_a_replica_never_goes_back_to_an_older_version() -> None:
    router = Routed(a=8)
    router.set_version("a", 3)
    with pytest.raises(AssertionError, match="went back from version 3 to 2"):
        router.set_version("a", 2)


def test_a_closed_replica_gets_nothing_more_and_may_finish() -> None:
    router = Routed(a=8)
    submit(router, 0)
    [request] = router.assign_now()["a"]
    router.close("a")
    submit(router, 1)
    assert assign(router) == {}
    assert router.finished("a", output_of(request)) == training_id("0:0")


def test_a_spared_replica_gets_nothing_more_until_it_is_spared_no_longer() -> None:
    router = Routed(a=8, b=2)
    submit(router, 0)
    [request] = router.assign_now()["a"]
    router.spare("a", True)
    submit(router, 1, 2)
    assert assign(router) == {"b": ["0:1#0"]}, "b has room for one more"
    assert router.finished("a", output_of(request)) == training_id("0:0")
    router.spare("a", False)
    assert assign(router) == {"a": ["0:2#0"]}


def test_what_a_leaving_replica_had_goes_on_elsewhere_with_its_tokens() -> None:
    router = Routed(a=8)
    submit(router, 0)
    [request] = router.assign_now()["a"]
    done, begun = make_sample(0, (0, 0, 1)), make_sample(1, (0, 3), finish=FinishReason.ABORT)
    assert router.replica_left("a", [RequestOutput(request_id=request.id, samples=(done, begun))], time_s=0.0) == [
        training_id("0:0")
    ]
    router.join("old", version=2, capacity=8, time_s=0.0)
    assert assign(router) == {}  # one of its tokens is newer than that replica
    router.join("new", version=3, capacity=8, time_s=0.0)
    [again] = router.assign_now()["new"]
    assert (again.id, again.resumed) == ("training/0:0#1", (done, begun))


def test_complete_samples_of_a_resumed_group_are_no_load() -> None:
    router = Routed(a=8)
    submit(router, 0)
    [request] = router.assign_now()["a"]
    samples = (make_sample(0, (0,)), make_sample(1, (0,), finish=FinishReason.ABORT))
    router.replica_left("a", [RequestOutput(request_id=request.id, samples=samples)], time_s=0.0)
    router.join("b", version=0, capacity=3, time_s=0.0)
    submit(router, 1, 2)
    assert assign(router) == {"b": ["0:0#1", "0:1#0"]}


def test_a_crash_costs_only_the_tokens_of_the_replica_that_crashed() -> None:
    router = Routed(a=8)
    submit(router, 0)
    [request] = router.assign_now()["a"]
    kept = (make_sample(0, (0,), finish=FinishReason.ABORT),)
    router.replica_left("a", [RequestOutput(request_id=request.id, samples=kept)], time_s=0.0)
    router.join("b", version=0, capacity=8, time_s=0.0)
    assert router.assign_now()["b"][0].resumed == kept
    assert router.replica_left("b", time_s=0.0) == [training_id("0:0", 1)]
    router.join("c", version=0, capacity=8, time_s=0.0)
    [third] = router.assign_now()["c"]
    assert (third.id, third.resumed) == ("training/0:0#2", kept)


def test_answers_that_come_too_late_are_not_listened_to() -> None:
    router = Routed(a=8)
    submit(router, 0)
    [first] = router.assign_now()["a"]
    router.replica_left("a", time_s=0.0)
    assert router.finished("a", output_of(first)) is None  # the replica is gone
    router.join("a", version=0, capacity=8, time_s=0.0)
    [second] = router.assign_now()["a"]
    assert router.finished("a", output_of(first)) is None  # it is back, and so is the group, but not that attempt
    assert router.finished("a", output_of(second)) == training_id("0:0", 1)
    assert router.finished("a", output_of(second)) is None  # twice
    assert (router.num_waiting(RequestKind.TRAINING), router.num_running(RequestKind.TRAINING)) == (0, 0)


def test_a_group_is_submitted_once() -> None:
    router = Routed(a=8)
    submit(router, 0)
    router.assign_now()
    with pytest.raises(AssertionError, match="request training/0:0#0 is already in the router"):
        submit(router, 0)


@pytest.mark.parametrize("name", ["0:17", "20/held_out:3", "with # and / in it"])
def test_an_id_is_read_as_it_was_written(name: str) -> None:
    request_id = RequestId(kind=RequestKind.EVALUATION, name=name, attempt=12)
    assert str(request_id) == f"evaluation/{name}#12"
    assert RequestId.parse(str(request_id)) == request_id
    assert request_id.first == RequestId(kind=RequestKind.EVALUATION, name=name)
    with pytest.raises(ValueError, match="not a valid RequestKind"):
        RequestId.parse(name)


def test_the_urgent_go_first_here_and_in_the_engine() -> None:
    router = Routed(a=2)
    submit(router, 0, 1)
    router.submit(evaluation(5), time_s=0.0)
    router.submit(evaluation(4), time_s=0.0)
    assigned = router.assign_now()["a"]
    assert [request.id for request in assigned] == ["evaluation/20/held_out:4#0", "evaluation/20/held_out:5#0"]
    submit_again = Routed(a=4)
    submit(submit_again, 0)
    [training] = submit_again.assign_now()["a"]
    assert all(request.priority < training.priority for request in assigned)
    assert all(-(2**31) <= request.priority < 2**31 for request in assigned), "the engine takes 32 bits"


def test_the_urgent_do_not_wait_for_room_that_others_have_taken() -> None:
    router = Routed(a=2)
    submit(router, 0, 1)
    assert assign(router) == {"a": ["0:0#0"]}
    for position in range(3):
        router.submit(evaluation(position), time_s=0.0)
    assert assign(router) == {"a": ["evaluation/20/held_out:0#0", "evaluation/20/held_out:1#0"]}, (
        "no more than 2 of them"
    )
    router.finished("a", RequestOutput(request_id="training/0:0#0", samples=()))
    assert assign(router) == {}, "nor anything less urgent beside them"
    router.finished("a", RequestOutput(request_id="evaluation/20/held_out:0#0", samples=()))
    assert assign(router) == {"a": ["evaluation/20/held_out:2#0"]}


def test_queues_are_counted_by_kind() -> None:
    router = Routed(a=2)
    submit(router, 0, 1)
    router.submit(evaluation(0), time_s=0.0)
    assert (router.num_waiting(RequestKind.TRAINING), router.num_waiting(RequestKind.EVALUATION)) == (2, 1)
    router.assign_now()
    assert (router.num_waiting(RequestKind.TRAINING), router.num_running(RequestKind.EVALUATION)) == (2, 1)


def test_a_prompt_of_any_kind_goes_back_to_the_replica_that_may_cache_it() -> None:
    router = Routed(a=8, b=8)
    router.submit_group(make_group(0, prompt_token_ids=(1, 2)))
    router.assign_now()
    router.submit(evaluation(0, prompt=(3, 4)), time_s=0.0)
    router.submit(evaluation(1, prompt=(1, 2)), time_s=0.0)
    assert assign(router) == {"b": ["evaluation/20/held_out:0#0"], "a": ["evaluation/20/held_out:1#0"]}


def test_what_is_withdrawn_is_nowhere_and_its_answer_is_passed_over() -> None:
    router = Routed(a=1)
    router.submit(evaluation(0), time_s=0.0)
    router.submit(evaluation(1), time_s=0.0)
    [request] = router.assign_now()["a"]
    for position in (0, 1, 2):
        router.withdraw(evaluation(position).id)
    router.check_integrity()
    assert router.finished("a", output_of(request)) is None
    router.submit(evaluation(2), time_s=0.0)
    assert assign(router) == {"a": ["evaluation/20/held_out:2#0"]}, "there is room again"


def expired(position: int, replica_id: str | None, waited_s: float, version: int = 0) -> Expired:
    request_id = evaluation(position).id
    return Expired(id=request_id, replica_id=replica_id, min_version=version, waited_s=waited_s)


def test_what_waits_expires_where_no_replica_that_could_take_it_makes_a_step() -> None:
    router = Routed(old=1, busy=1)
    router.submit(evaluation(0, version=1, timeout_s=10.0), time_s=5.0)
    submit(router, 0)
    router.note_step("old", time_s=14.0)
    assert router.expire(time_s=15.0) == []
    assert router.expire(time_s=15.1) == [expired(0, None, pytest.approx(10.1), version=1)]
    assert router.expire(time_s=99.0) == [], "it is gone, and training has no deadline"
    router.set_version("busy", 1)
    router.submit(evaluation(0, version=1, timeout_s=10.0), time_s=5.0)
    router.note_step("busy", time_s=14.0)
    assert router.expire(time_s=24.0) == []
    assert [found.waited_s for found in router.expire(time_s=25.0)] == [11.0]
    router.check_integrity()


def test_what_a_replica_holds_has_twice_as_long_from_its_last_step() -> None:
    router = Routed(a=2, b=2)
    for position in range(2):
        router.submit(evaluation(position, timeout_s=10.0), time_s=0.0)
    assert {key: len(requests) for key, requests in router.assign(time_s=8.0).items()} == {"a": 1, "b": 1}
    router.note_step("b", time_s=12.0)
    assert router.expire(time_s=28.0) == []
    assert router.expire(time_s=29.0) == [expired(0, "a", 21.0)]
    assert router.replica_left("b", time_s=30.0) == [evaluation(1).id]
    assert router.expire(time_s=40.0) == [], "to come back is to get on"
    assert [found.replica_id for found in router.expire(time_s=41.0)] == [None]
    router.check_integrity()
