"""Replicas: their states, what crosses to them, and what becomes of requests when one is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replica_fakes import HEALTH, READY, a_request, delta, make_pool, the_end, until
from serving_fakes import generated

from rlserve.engine.config import EngineConfig
from rlserve.engine.requests.request import FinishReason, Request, SampleOutput, SamplingParams
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.engine.stats.metrics import Histogram
from rlserve.errors import ConfigurationError, IllegalTransitionError, UserError, WorkerFailedError
from rlserve.pool.nvidia import Gpu
from rlserve.serving.config import HealthConfig, ServeConfig, ServedModelConfig
from rlserve.serving.replicas.live_request import LiveRequest, RequestGroup
from rlserve.serving.replicas.messages import Abort, Beat, Done, Message, News, Order, Refused, Start, Submit
from rlserve.serving.replicas.places import environments, replica_places
from rlserve.serving.replicas.speed import SpeedMeter
from rlserve.serving.replicas.state import ReplicaState, Signs, check_move, judge, restart_pause_s
from rlserve.serving.replicas.wire import MessageReader, pack

FORM = StructuredOutput(kind="regex", text="[0-9]+")


@pytest.mark.parametrize(
    "message",
    [
        Start(model_path="/m", engine=EngineConfig(num_blocks=7), beat_interval_s=0.5, max_pieces_per_s=1e3),
        Submit(
            requests=(
                Request(
                    id="a",
                    prompt_token_ids=(1, 2),
                    sampling=SamplingParams(logit_bias={3: -1.5}, stop=("é",), seed=2**63, n=2, structured_output=FORM),
                    resumed=(
                        SampleOutput(
                            index=1,
                            tokens=generated([1, 2]),
                            top_log_probs=(((1, -0.5), (2, -1.0)), ((3, -0.25),)),
                            finish_reason=FinishReason.STOP,
                            stop_reason="é",
                        ),
                    ),
                ),
            ),
            streamed=True,
        ),
        Abort(request_ids=("a", "b")),
        Order(number=1, action="swap", weight_version=2),
        Done(number=1, error="no", pause_s=0.5),
        READY,
        Refused(message="no"),
        News(deltas=(delta("a", 3, [1], FinishReason.LENGTH), the_end("b"))),
        Beat(
            num_steps=3,
            has_work=True,
            busy_s=0.5,
            num_generated_tokens=9,
            weight_version=2,
            metrics={"a": 1.0, "b": Histogram(bounds=(1.0,), counts=(1, 2), sum=3.0)},
        ),
    ],
    ids=lambda message: type(message).__name__,
)
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_messages_come_out_as_they_went_in(message: Message, size: int) -> None:
    content, reader = pack(message) * 2, MessageReader()
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    assert [found for part in parts for found in reader.feed(part)] == [message, message]


def test_reasons_are_reasons_again() -> None:
    (found,) = MessageReader().feed(pack(News(deltas=(delta("a", 0, [1], FinishReason.STOP),))))
    assert isinstance(found, News)
    assert found.deltas[0].samples[0].finish_reason is FinishReason.STOP


@given(parts=st.lists(st.lists(st.integers(0, 40), max_size=4), max_size=6), reads=st.sets(st.integers(0, 6)))
def test_a_reader_sees_every_token_once(parts: list[list[int]], reads: set[int]) -> None:
    live = LiveRequest(a_request(), "", streamed=True, changed=asyncio.Event())
    seen: list[int] = []
    start = 0

    def read() -> None:
        nonlocal seen
        if (unseen := live.take_unseen()) is not None:
            for sample in unseen.samples:
                assert sample.start == len(seen)
                seen += sample.tokens.token_ids.tolist()

    for number, tokens in enumerate(parts):
        live.take(delta("r", start, tokens))
        start += len(tokens)
        if number in reads:
            read()
    live.take(the_end("r"))
    read()
    assert seen == [token for tokens in parts for token in tokens]
    assert live.take_unseen() is None
    resumed = live.resumed().resumed
    assert [sample.token_ids for sample in resumed] == ([tuple(seen)] if seen else [])


def signs(state: ReplicaState, *, beat_s: float = 0.0, progress_s: float = 0.0) -> Signs:
    return Signs(state=state, started_s=0.0, last_beat_s=beat_s, last_progress_s=progress_s)


@pytest.mark.parametrize(
    ("found", "now_s", "expected"),
    [
        (signs(ReplicaState.READY), 0.5, ReplicaState.READY),
        (signs(ReplicaState.READY), 1.5, ReplicaState.SUSPECT),
        (signs(ReplicaState.SUSPECT, beat_s=1.4), 1.5, ReplicaState.READY),
        (signs(ReplicaState.SUSPECT), 2.5, ReplicaState.LOST),
        (signs(ReplicaState.READY, beat_s=6.0), 6.0, ReplicaState.LOST),
        (signs(ReplicaState.READY, beat_s=6.0, progress_s=6.0), 6.0, ReplicaState.READY),
        (signs(ReplicaState.STARTING), 9.0, ReplicaState.STARTING),
        (signs(ReplicaState.STARTING), 11.0, ReplicaState.LOST),
        (signs(ReplicaState.LOST), 1000.0, ReplicaState.LOST),
        (signs(ReplicaState.FAILED), 1000.0, ReplicaState.FAILED),
    ],
)
def test_signs_of_life(found: Signs, now_s: float, expected: ReplicaState) -> None:
    state, reason = judge(found, now_s, HEALTH)
    assert state is expected
    assert bool(reason) == (state is not found.state and state is not ReplicaState.READY)


def test_only_legal_moves() -> None:
    check_move("0", ReplicaState.LOST, ReplicaState.STARTING)
    for old, new in ((ReplicaState.LOST, ReplicaState.READY), (ReplicaState.FAILED, ReplicaState.STARTING)):
        with pytest.raises(IllegalTransitionError):
            check_move("0", old, new)
    with pytest.raises(ConfigurationError, match="lost_after_s"):
        HealthConfig(suspect_after_s=3, lost_after_s=2)


def test_pauses_before_restarts_grow() -> None:
    assert [restart_pause_s(number) for number in (0, 1, 2, 3, 20)] == [0, 1, 2, 4, 30]


def test_speed_is_that_of_late() -> None:
    meter = SpeedMeter()
    assert meter.tokens_per_s is None
    meter.note(100, 1.0)
    assert meter.tokens_per_s == pytest.approx(100)
    meter.note(100 + 60 * 10, 61.0)
    assert meter.tokens_per_s == pytest.approx(10)


def test_each_replica_has_devices_of_its_own() -> None:
    config = ServeConfig(model=ServedModelConfig(path="m"), num_replicas=2, engine=EngineConfig(tensor_parallel_size=2))
    gpus = [Gpu(type="H100", uuid=f"GPU-{number}") for number in range(5)]
    assert environments(config, gpus, 8) == [
        {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"},
        {"CUDA_VISIBLE_DEVICES": "GPU-2,GPU-3"},
    ]
    with pytest.raises(UserError, match="need 4 GPUs, and 3"):
        environments(config, gpus[:3], 8)
    assert [place["OMP_NUM_THREADS"] for place in environments(config, [], 9)] == ["4", "4"]


@pytest.mark.parametrize(
    ("engine", "exact", "expected"),
    [
        (EngineConfig(device="cpu"), True, True),
        (EngineConfig(device="cpu"), False, False),
        (EngineConfig(device="cpu", tensor_parallel_size=2), True, False),
    ],
)
def test_answers_are_the_same_bits_on_a_cpu(engine: EngineConfig, exact: bool, expected: bool) -> None:
    config = ServeConfig(model=ServedModelConfig(path="m"), engine=engine, health=HealthConfig(exact_failover=exact))
    (place,) = replica_places(config, "/m")
    assert place.start.engine == replace(engine, deterministic=expected)


async def fail_over() -> None:
    pool, replicas = make_pool()
    async with pool.running():
        await pool.wait_ready()
        await until(lambda: pool.num_ready == 2)
        async with pool.open([a_request("x", n=2, seed=1)], "", streamed=True) as group:
            (asked,) = replicas[0].submitted
            assert asked.resumed == ()
            replicas[0].tell(delta("x", 0, [7, 8]), delta("x", 0, [9], FinishReason.STOP, index=1))
            assert [sample.tokens.token_ids.tolist() for sample in (await group.next())[0][1].samples] == [[7, 8], [9]]
            replicas[0].ends.set()
            await until(lambda: bool(replicas[1].submitted))
            (again,) = replicas[1].submitted
            assert (again.id, again.sampling) == (asked.id, asked.sampling)
            assert [(sample.index, sample.token_ids, sample.finish_reason) for sample in again.resumed] == [
                (0, (7, 8), None),
                (1, (9,), FinishReason.STOP),
            ]
            replicas[0].tell(delta("x", 2, [99]))  # late words of the one that is lost
            replicas[1].tell(delta("x", 2, [10], FinishReason.LENGTH), the_end("x"))
            ((_, last),) = await group.next()
            assert [sample.tokens.token_ids.tolist() for sample in last.samples] == [[10]]
            assert await group.next() == []
        assert pool.num_live_samples == 0
        assert pool.counts.num_failovers == 1
        assert not any(isinstance(message, Abort) for replica in replicas for message in replica.sent)


def test_a_stream_goes_on_with_another_replica() -> None:
    asyncio.run(fail_over())


def test_an_answer_that_is_not_streamed_goes_on_with_another_replica_too() -> None:
    async def lose() -> None:
        pool, replicas = make_pool()
        async with pool.running():
            await pool.wait_ready()
            await until(lambda: pool.num_ready == 2)
            async with pool.open([a_request("x", seed=1)], "", streamed=False) as group:
                assert len(replicas[0].submitted) == 1
                replicas[0].tell(delta("x", 0, [7, 8]))
                await until(lambda: group.lives[0].resumed() is not group.lives[0].request)
                replicas[0].ends.set()
                await until(lambda: bool(replicas[1].submitted))
                (again,) = replicas[1].submitted
                assert [(sample.index, sample.token_ids) for sample in again.resumed] == [(0, (7, 8))]
                replicas[1].tell(delta("x", 2, [9]))
                replicas[1].tell(the_end("x"))
                assert [output.request_id for output in await group.outputs()] == ["x"]

    asyncio.run(lose())


def test_whoever_leaves_is_aborted() -> None:
    async def leave() -> None:
        pool, (replica,) = make_pool(1)
        async with pool.running():
            await pool.wait_ready()
            async with pool.open([a_request("x"), a_request("y")], "", streamed=False) as group:
                replica.tell(the_end("x"))
                assert pool.num_live_samples == 2
            assert [message.request_ids for message in replica.sent if isinstance(message, Abort)] == [("y",)]
            assert isinstance(group, RequestGroup)
            assert pool.num_live_samples == 0
            replica.tell(the_end("y"))

    asyncio.run(leave())


def test_requests_wait_for_a_replica_to_come_back() -> None:
    async def wait() -> None:
        pool, (replica,) = make_pool(1)
        async with pool.running():
            await pool.wait_ready()
            async with pool.open([a_request("x")], "", streamed=False) as group:
                replica.ends.set()
                await until(lambda: len(replica.submitted) == 2)
                replica.tell(the_end("x"))
                assert [output.request_id for output in await group.outputs()] == ["x"]

    asyncio.run(wait())


def test_a_request_that_replicas_die_of_is_given_up() -> None:
    async def lose() -> None:
        pool, (replica,) = make_pool(1, HealthConfig(max_failovers=2))
        async with pool.running():
            await pool.wait_ready()
            async with pool.open([a_request("x")], "", streamed=True) as group:
                for number in (1, 2, 3):
                    await until(lambda number=number: len(replica.submitted) == number)  # type: ignore[misc]
                    replica.ends.set()
                ((_, delta),) = await group.next()
                assert delta.output is not None
                assert delta.output.error == "no replica outlived it: 3 were lost under it"
            assert pool.num_live_samples == 0
            assert pool.counts.num_failovers == 2

    asyncio.run(lose())


def test_a_replica_that_falls_silent_is_killed_and_started_anew() -> None:
    async def fall_silent() -> None:
        now_s = 0.0
        pool, replicas = make_pool(clock=lambda: now_s)
        async with pool.running():
            await until(lambda: pool.num_ready == 2)
            async with pool.open([a_request("x")], "", streamed=True):
                now_s = HEALTH.lost_after_s + 1
                replicas[1].tell()  # the other one lives
                await until(lambda: bool(replicas[1].submitted))
                assert replicas[1].submitted[0].id == "x"
                await until(lambda: pool.num_ready == 2)
            assert pool.counts.num_lost == 1

    asyncio.run(fall_silent())


def test_a_model_that_cannot_be_had_ends_the_server() -> None:
    async def start() -> None:
        pool, (replica,) = make_pool(1)
        replica.refuses = "no such model"
        with pytest.raises(UserError, match="no such model"):
            async with pool.running():
                await pool.wait_ready()

    asyncio.run(start())


def test_a_replica_that_never_starts_is_given_up() -> None:
    async def start() -> None:
        pool, (replica,) = make_pool(1, HealthConfig(max_failed_starts=1))
        replica.becomes_ready = False
        async with pool.running():
            await until(lambda: replica.state is ReplicaState.STARTING)
            replica.ends.set()
            with pytest.raises(WorkerFailedError, match="given up"):
                await pool.wait_ready()
        assert replica.state is ReplicaState.STOPPED

    asyncio.run(start())


def test_numbers_are_those_of_the_moment_that_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlserve.serving.replicas.pool._REPORT_TIMEOUT_S", 0.01)

    async def ask() -> None:
        pool, (prompt, silent, starting) = make_pool(3)
        starting.becomes_ready = False
        async with pool.running():
            await until(lambda: pool.num_ready == 2)
            asked = asyncio.create_task(pool.refresh())
            await until(lambda: len(prompt.sent) == len(silent.sent) == 1)
            (report,) = prompt.sent
            assert isinstance(report, Order)
            assert report.action == "report"
            beat = Beat(
                num_steps=1, has_work=False, busy_s=0, num_generated_tokens=3, weight_version=0, metrics={"a": 3.0}
            )
            prompt._take(beat)
            prompt._take(Done(number=report.number))
            await asked  # though one says nothing
            assert pool.engine_metrics == {"0": {"a": 3.0}}
            assert starting.sent == []

    asyncio.run(ask())
