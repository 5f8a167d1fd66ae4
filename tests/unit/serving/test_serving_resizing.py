"""Replicas that start and drain while requests are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replica_fakes import FakeReplica, a_request, delta, make_pool, the_end, until

from rlserve.engine.stats.metrics import Histogram
from rlserve.serving.config import HealthConfig
from rlserve.serving.replicas.messages import Abort
from rlserve.serving.replicas.resizing import Resizing, resizing
from rlserve.serving.replicas.state import ReplicaState
from rlserve.serving.scaling.base import Cause
from rlserve.serving.scaling.config import ScalingConfig, TargetsConfig
from rlserve.serving.scaling.load_meter import LoadMeter, Reading
from rlserve.serving.scaling.scaler import Scaler
from rlserve.serving.scaling.targets import TargetTracking

THERE = {ReplicaState.LOST, ReplicaState.STARTING, ReplicaState.SUSPECT, ReplicaState.READY}
STATES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(sorted(set(ReplicaState) - {ReplicaState.STOPPED})))


@given(states=STATES, num_wanted=st.integers(0, 8), samples=st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_as_many_are_there_as_are_wanted(states: dict[str, ReplicaState], num_wanted: int, samples: list[int]) -> None:
    change = resizing(states, dict(zip("abcdef", samples, strict=True)), num_wanted)
    there = {name for name, state in states.items() if state in THERE}
    after = (there | {*change.kept, *change.started}) - set(change.ended)
    num_possible = sum(state is not ReplicaState.FAILED for state in states.values())
    assert len(after) == min(num_wanted, num_possible)
    assert set(change.ended) <= there
    assert not change.ended or not (change.kept or change.started)


def test_those_with_least_to_lose_end_first() -> None:
    states = dict.fromkeys("abc", ReplicaState.READY) | {"d": ReplicaState.STARTING, "e": ReplicaState.DRAINING}
    samples = {"a": 5, "b": 1, "c": 3, "d": 0, "e": 2}
    assert resizing(states, samples, 2) == Resizing(ended=("d", "b"))
    assert resizing(states | {"f": ReplicaState.IDLE}, samples, 6) == Resizing(kept=("e",), started=("f",))


@given(states=STATES, num_wanted=st.integers(0, 8), drained=st.sets(st.sampled_from("abcdef")))
def test_who_gets_no_requests_is_never_preferred(
    states: dict[str, ReplicaState], num_wanted: int, drained: set[str]
) -> None:
    change = resizing(states, dict.fromkeys("abcdef", 0), num_wanted, drained)
    there = {name for name, state in states.items() if state in THERE}
    at_rest = {name for name, state in states.items() if state in (ReplicaState.DRAINING, ReplicaState.IDLE)}
    stays, comes = there - set(change.ended), {*change.kept, *change.started}
    assert len(stays | comes) == min(num_wanted, len(there | at_rest))
    assert set(change.ended) <= drained or not drained & stays
    assert not drained & comes or at_rest - drained <= comes


def test_a_drained_replica_ends_before_the_one_that_answers() -> None:
    async def scenario() -> None:
        pool, replicas = make_pool(2)
        async with pool.running():
            await until(lambda: pool.num_ready == 2)
            async with pool.open([a_request("x")], "", streamed=True):
                assert [request.id for request in replicas[0].submitted] == ["x"]
                pool.drained.add("0")
                pool.resize(1)
                assert states_of(replicas) == ["draining", "ready"]
                assert pool.num_ready == 1

    asyncio.run(scenario())


def states_of(replicas: Sequence[FakeReplica]) -> list[str]:
    return [str(replica.state) for replica in replicas]


def test_a_replica_that_is_not_wanted_ends_its_streams_first() -> None:
    async def drain() -> None:
        pool, replicas = make_pool(2, num_wanted=1)
        async with pool.running():
            await pool.wait_ready()
            await until(lambda: states_of(replicas) == ["ready", "idle"])
            pool.resize(2)
            await until(lambda: pool.num_ready == 2)
            async with (
                pool.open([a_request("x"), a_request("z")], "", streamed=True),
                pool.open([a_request("y")], "", streamed=True) as group,
            ):
                assert [request.id for request in replicas[0].submitted] == ["x", "y"]
                pool.resize(1)
                assert states_of(replicas) == ["ready", "draining"]
                async with pool.open([a_request("later")], "", streamed=True):
                    assert replicas[0].submitted[-1].id == "later"
                replicas[1].tell(delta("z", 0, [7]))
                assert states_of(replicas) == ["ready", "draining"]
                replicas[1].tell(the_end("z"))
                await until(lambda: states_of(replicas) == ["ready", "idle"])
                replicas[0].tell(the_end("y"))
                assert [name for name, _ in await group.next()] == [0]
            assert pool.counts.num_failovers == pool.counts.num_lost == 0
            assert not any(isinstance(message, Abort) for message in replicas[1].sent)
            pool.resize(2)
            await until(lambda: pool.num_ready == 2)

    asyncio.run(drain())


def test_what_does_not_end_in_time_goes_on_elsewhere() -> None:
    async def drain() -> None:
        now_s = 0.0
        pool, replicas = make_pool(2, HealthConfig(max_failovers=0), clock=lambda: now_s, drain_timeout_s=1)
        async with pool.running():
            await until(lambda: pool.num_ready == 2)
            async with (
                pool.open([a_request("x", n=2)], "", streamed=True),
                pool.open([a_request("y")], "", streamed=True) as group,
            ):
                replicas[1].tell(delta("y", 0, [7, 8]))
                pool.resize(1)
                assert states_of(replicas) == ["ready", "draining"]
                now_s = 1.0
                replicas[0].tell()
                replicas[1].tell()
                await until(lambda: states_of(replicas) == ["ready", "idle"])
                assert [sample.token_ids for sample in replicas[0].submitted[-1].resumed] == [(7, 8)]
                replicas[0].tell(delta("y", 2, [9]), the_end("y"))
                ((_, news),) = await group.next()
                assert news.samples[0].tokens.token_ids.tolist() == [7, 8, 9]
            assert (pool.counts.num_failovers, pool.counts.num_lost) == (1, 0)

    asyncio.run(drain())


def test_a_replica_that_drains_is_taken_back() -> None:
    async def drain() -> None:
        pool, replicas = make_pool(2)
        async with pool.running():
            await until(lambda: pool.num_ready == 2)
            async with pool.open([a_request("x"), a_request("y")], "", streamed=True):
                pool.resize(1)
                assert sorted(states_of(replicas)) == ["draining", "ready"]
                pool.resize(2)
                assert states_of(replicas) == ["ready", "ready"]

    asyncio.run(drain())


def test_a_replica_that_is_lost_while_it_drains_is_not_started_anew() -> None:
    async def lose() -> None:
        pool, replicas = make_pool(2)
        async with pool.running():
            await until(lambda: pool.num_ready == 2)
            async with pool.open([a_request("x"), a_request("y")], "", streamed=True):
                pool.resize(1)
                (drained,) = [replica for replica in replicas if replica.state is ReplicaState.DRAINING]
                drained.ends.set()
                await until(lambda: drained.state is ReplicaState.IDLE)
                assert pool.counts.num_failovers == pool.counts.num_lost == 1
                assert pool.num_live_samples == 2

    asyncio.run(lose())


def test_another_place_is_tried_where_one_is_given_up() -> None:
    async def start() -> None:
        pool, replicas = make_pool(2, HealthConfig(max_failed_starts=1), num_wanted=1)
        replicas[0].becomes_ready = False
        async with pool.running():
            await until(lambda: replicas[0].state is ReplicaState.STARTING)
            replicas[0].ends.set()
            await until(lambda: states_of(replicas) == ["failed", "ready"])

    asyncio.run(start())


def test_a_start_that_is_called_off_is_no_failed_one() -> None:
    async def start() -> None:
        pool, replicas = make_pool(2)
        replicas[1].becomes_ready = False
        async with pool.running():
            await until(lambda: states_of(replicas) == ["ready", "starting"])
            pool.resize(1)
            assert states_of(replicas) == ["ready", "idle"]
            assert replicas[1].num_failed_starts == 0

    asyncio.run(start())


def test_load_is_what_was_counted_in_between() -> None:
    def reading(time_s: float, count: int, sum_s: float, busy_s: float) -> Reading:
        times = Histogram(bounds=(1.0,), counts=(count, 0), sum=sum_s)
        engine = {
            "vllm:num_requests_waiting": 2,
            "vllm:kv_cache_usage_perc": 0.25,
            "vllm:time_to_first_token_seconds": times,
        }
        return Reading(
            time_s=time_s,
            num_ready=1,
            num_live_samples=6,
            num_places=8,
            num_unplaced=3,
            engines={"0": engine},
            busy_s={"0": busy_s},
        )

    meter = LoadMeter()
    first = meter.sample(reading(0, 4, 8.0, 1.0))
    assert (first.num_waiting, first.kv_cache_usage, first.busy_share) == (5, 0.25, None)
    second = meter.sample(reading(4, 6, 9.0, 2.0))
    assert second.time_to_first_token_s == pytest.approx(0.5)
    assert (second.busy_share, second.inter_token_latency_s) == (0.25, None)
    assert meter.sample(reading(5, 6, 9.0, 2.0)).time_to_first_token_s is None  # nothing new
    assert meter.sample(reading(6, 2, 1.0, 0.5)).time_to_first_token_s == pytest.approx(0.5)  # begun anew


def test_decisions_are_carried_out_and_told() -> None:
    async def scale() -> None:
        now_s = 0.0
        config = ScalingConfig(
            enabled=True,
            targets=TargetsConfig(load=0.5),
            scale_up_window_s=0,
            scale_down_window_s=10,
            scale_up_cooldown_s=0,
            scale_down_cooldown_s=0,
        )
        pool, replicas = make_pool(2, num_wanted=1, clock=lambda: now_s)
        scaler = Scaler(TargetTracking(config), pool, interval_s=1, clock=lambda: now_s, wall_clock=lambda: now_s)
        async with pool.running():
            await pool.wait_ready()
            async with pool.open([a_request(str(number)) for number in range(6)], "", streamed=True):
                plan = scaler.step()
                assert (plan.num_replicas, plan.cause, plan.numbers["demand/load"]) == (2, Cause.LOAD, 1.5)
                await until(lambda: pool.num_ready == 2)
            for now_s in range(12):  # noqa: B007
                for replica in replicas:
                    replica.tell()
                scaler.step()
            assert pool.num_wanted == 1
            told = {
                (sample.name, *sample.labels.values()): sample.value
                for family in scaler.collect()
                for sample in family.samples
            }
            assert told["rlserve:wanted_replicas",] == 1
            assert told["rlserve:scaling_changes_total", "up", "load"] == 1
            assert told["rlserve:scaling_changes_total", "down", "load"] == 1
            assert sum(value for name, value in told.items() if name[0] == "rlserve:scaling_cause") == 1

    asyncio.run(scale())


def test_a_paused_server_keeps_its_replicas_whatever_waits_and_begins_anew_afterwards() -> None:
    async def scale() -> None:
        now_s = 0.0
        windows = {"scale_up_window_s": 10, "scale_down_window_s": 10}
        cooldowns = {"scale_up_cooldown_s": 0, "scale_down_cooldown_s": 0}
        config = ScalingConfig(enabled=True, targets=TargetsConfig(load=0.5), **windows, **cooldowns)
        pool, replicas = make_pool(2, num_wanted=1, clock=lambda: now_s)
        scaler = Scaler(TargetTracking(config), pool, interval_s=1, clock=lambda: now_s, wall_clock=lambda: now_s)

        def set_paused(is_paused: bool) -> None:
            for replica in replicas:
                replica.start = replace(replica.start, is_paused=is_paused)

        async with pool.running():
            await pool.wait_ready()
            set_paused(True)
            async with pool.open([a_request(str(number)) for number in range(6)], "", streamed=True):
                for now_s in range(3):  # noqa: B007
                    replicas[0].tell()
                    assert scaler.step().cause is Cause.PAUSED
                assert pool.num_wanted == 1
                set_paused(False)
                assert scaler.step().num_replicas == 2  # now they have to be answered
            await until(lambda: pool.num_ready == 2)
            set_paused(True)
            for now_s in range(3, 30):  # noqa: B007
                for replica in replicas:
                    replica.tell()
                assert scaler.step().num_replicas == 2
            set_paused(False)
            assert scaler.step().cause is Cause.WINDOW  # a pause is no time in which there was little to do

    asyncio.run(scale())
