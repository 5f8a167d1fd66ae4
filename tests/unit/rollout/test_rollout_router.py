"""Whom the router gives what, and what happens to it when a replica leaves."""

from __future__ import annotations

import pytest
from rollout_builders import make_group, make_sample

from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.rollout.requests.router import MAX_REMEMBERED_PROMPTS, Router, sampling_seed


def make_router(*, num_samples: int = 2, **capacities: int) -> Router:
    """A router with a replica of version 0 for each named capacity."""
    router = Router(sampling=SamplingParams(n=num_samples, max_tokens=9, temperature=0.5), run_seed=11)
    for replica_id, capacity in capacities.items():
        router.join(replica_id, version=0, capacity=capacity)
    return router


def submit(router: Router, *positions: int, version: int = 0) -> None:
    """Submit groups with prompts of their own."""
    for position in positions:
        router.submit(make_group(position), admitted_version=version)


def assign(router: Router) -> dict[str, list[str]]:
    """Assign and return the ids of the requests."""
    assigned = {key: [request.id for request in requests] for key, requests in router.assign().items()}
    router.check_integrity()
    return assigned


def output_of(request: Request, *, finish: FinishReason | None = FinishReason.STOP) -> RequestOutput:
    """A whole answer."""
    samples = tuple(make_sample(index, (0, 0), finish=finish) for index in range(request.sampling.n))
    return RequestOutput(request_id=request.id, samples=samples)


def test_a_request_says_what_to_sample_and_how() -> None:
    router = make_router(a=2)
    router.submit(make_group(5), admitted_version=0, attempt=3)
    [request] = router.assign()["a"]
    assert (request.id, request.prompt_token_ids, request.priority, request.resumed) == ("0:5#3", (7, 5), 5, ())
    assert (request.sampling.n, request.sampling.max_tokens, request.sampling.temperature) == (2, 9, 0.5)
    assert request.sampling.seed == sampling_seed(11, "0:5")


def test_the_seed_is_stable_and_differs_by_run_and_group() -> None:
    assert sampling_seed(0, "0:0") == 8505459832554986233
    seeds = {sampling_seed(run_seed, f"0:{row}") for run_seed in range(10) for row in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_groups_spread_over_the_least_loaded_replicas_in_order() -> None:
    router = make_router(a=8, b=8)
    submit(router, 3, 0, 2, 1)
    assert assign(router) == {"a": ["0:0#0", "0:2#0"], "b": ["0:1#0", "0:3#0"]}
    assert (router.num_waiting, router.num_running) == (0, 4)


def test_load_counts_by_capacity() -> None:
    router = make_router(small=8, large=16)
    submit(router, *range(6))
    assert {key: len(ids) for key, ids in assign(router).items()} == {"small": 2, "large": 4}


def test_equal_numbers_of_samples_go_to_the_replica_with_fewer_tokens() -> None:
    router = make_router(a=8, b=8)
    router.submit(make_group(0, prompt_token_ids=(1,) * 50), admitted_version=0)
    submit(router, 1, 2)
    assert assign(router) == {"a": ["0:0#0"], "b": ["0:1#0", "0:2#0"]}


def test_what_does_not_fit_waits_in_the_router() -> None:
    router = make_router(a=4)
    submit(router, *range(5))
    assert assign(router) == {"a": ["0:0#0", "0:1#0"]}
    assert (router.num_waiting, router.num_running) == (3, 2)
    assert assign(router) == {}


def test_an_idle_replica_takes_a_group_larger_than_its_capacity() -> None:
    router = make_router(num_samples=8, a=3, b=3)
    submit(router, 0, 1, 2)
    assert assign(router) == {"a": ["0:0#0"], "b": ["0:1#0"]}


def test_finished_groups_make_room() -> None:
    router = make_router(a=2)
    submit(router, 0, 1)
    [request] = router.assign()["a"]
    assert router.finished("a", output_of(request)) == make_group(0)
    assert assign(router) == {"a": ["0:1#0"]}


def test_a_prompt_goes_back_to_the_replica_that_may_cache_it() -> None:
    router = make_router(a=8, b=8)
    router.submit(make_group(0, prompt_token_ids=(1, 2)), admitted_version=0)
    router.submit(make_group(1, prompt_token_ids=(1, 2)), admitted_version=0)
    router.submit(make_group(2, prompt_token_ids=(3, 4)), admitted_version=0)
    assert assign(router) == {"a": ["0:0#0", "0:1#0"], "b": ["0:2#0"]}


def test_a_full_replica_is_not_waited_for_because_it_caches_the_prompt() -> None:
    router = make_router(a=2, b=2)
    for position in range(2):
        router.submit(make_group(position, prompt_token_ids=(1, 2)), admitted_version=0)
    assert assign(router) == {"a": ["0:0#0"], "b": ["0:1#0"]}


def test_no_more_prompts_are_remembered_than_the_bound() -> None:
    router = make_router(num_samples=1, a=10 * MAX_REMEMBERED_PROMPTS, b=10 * MAX_REMEMBERED_PROMPTS)
    submit(router, *range(MAX_REMEMBERED_PROMPTS + 1))
    first = router.assign()
    assert first["a"][0].id == "0:0#0"
    router.submit(make_group(90000, prompt_token_ids=(7, 0)), admitted_version=0)  # forgotten: goes by load
    router.submit(make_group(90001, prompt_token_ids=(7, 2)), admitted_version=0)  # remembered: a had it
    assert {key: [request.id for request in requests] for key, requests in router.assign().items()} == {
        "b": ["0:90000#0"],
        "a": ["0:90001#0"],
    }


def test_a_group_waits_for_a_replica_that_is_as_new_as_its_admission() -> None:
    router = make_router(old=8)
    router.join("new", version=2, capacity=2)
    submit(router, 0, 1, version=2)
    submit(router, 2, version=0)
    assert assign(router) == {"new": ["0:0#0"], "old": ["0:2#0"]}
    router.set_version("old", 2)
    assert assign(router) == {"old": ["0:1#0"]}


def test_a_replica_never_goes_back_to_an_older_version() -> None:
    router = make_router(a=8)
    router.set_version("a", 3)
    with pytest.raises(AssertionError, match="went back from version 3 to 2"):
        router.set_version("a", 2)


def test_a_closed_replica_gets_nothing_more_and_may_finish() -> None:
    router = make_router(a=8)
    submit(router, 0)
    [request] = router.assign()["a"]
    router.close("a")
    submit(router, 1)
    assert assign(router) == {}
    assert router.finished("a", output_of(request)) == make_group(0)


def test_what_a_leaving_replica_had_goes_on_elsewhere_with_its_tokens() -> None:
    router = make_router(a=8)
    submit(router, 0)
    [request] = router.assign()["a"]
    done, begun = make_sample(0, (0, 0, 1)), make_sample(1, (0, 3), finish=FinishReason.ABORT)
    assert router.replica_left("a", [RequestOutput(request_id=request.id, samples=(done, begun))]) == ["0:0"]
    router.join("old", version=2, capacity=8)
    assert assign(router) == {}  # one of its tokens is newer than that replica
    router.join("new", version=3, capacity=8)
    [again] = router.assign()["new"]
    assert (again.id, again.resumed) == ("0:0#1", (done, begun))


def test_complete_samples_of_a_resumed_group_are_no_load() -> None:
    router = make_router(a=8)
    submit(router, 0)
    [request] = router.assign()["a"]
    samples = (make_sample(0, (0,)), make_sample(1, (0,), finish=FinishReason.ABORT))
    router.replica_left("a", [RequestOutput(request_id=request.id, samples=samples)])
    router.join("b", version=0, capacity=3)
    submit(router, 1, 2)
    assert assign(router) == {"b": ["0:0#1", "0:1#0"]}


def test_a_crash_costs_only_the_tokens_of_the_replica_that_crashed() -> None:
    router = make_router(a=8)
    submit(router, 0)
    [request] = router.assign()["a"]
    kept = (make_sample(0, (0,), finish=FinishReason.ABORT),)
    router.replica_left("a", [RequestOutput(request_id=request.id, samples=kept)])
    router.join("b", version=0, capacity=8)
    assert router.assign()["b"][0].resumed == kept
    assert router.replica_left("b") == ["0:0"]
    router.join("c", version=0, capacity=8)
    [third] = router.assign()["c"]
    assert (third.id, third.resumed) == ("0:0#2", kept)


def test_answers_that_come_too_late_are_not_listened_to() -> None:
    router = make_router(a=8)
    submit(router, 0)
    [first] = router.assign()["a"]
    router.replica_left("a")
    assert router.finished("a", output_of(first)) is None  # the replica is gone
    router.join("a", version=0, capacity=8)
    [second] = router.assign()["a"]
    assert router.finished("a", output_of(first)) is None  # it is back, and so is the group, but not that attempt
    assert router.finished("a", output_of(second)) == make_group(0)
    assert router.finished("a", output_of(second)) is None  # twice
    assert (router.num_waiting, router.num_running) == (0, 0)


def test_a_group_is_submitted_once() -> None:
    router = make_router(a=8)
    submit(router, 0)
    router.assign()
    with pytest.raises(AssertionError, match="0:0 is already in the router"):
        submit(router, 0)
