"""What the ranks of a model say to each other, and what becomes of them when one is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model, weights_of
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlserve.distributed.addresses import free_port, listen
from rlserve.engine import Engine, EngineConfig, FollowerThread, RankPlace, follow, join_ranks
from rlserve.engine.parallel.base import RankGroup
from rlserve.engine.parallel.orders import Order
from rlserve.engine.parallel.rank_processes import RankProcesses
from rlserve.engine.parallel.sharded_runner import buckets
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import DeadlineExceededError, UserError, WeightsRefusedError, WorkerFailedError

REQUEST = make_request("0", range(10), max_tokens=30)
CONFIG = EngineConfig(
    device="cpu", dtype="float32", block_size=4, num_blocks=96, max_num_batched_tokens=8, tensor_parallel_size=2
)
END_S = 60.0


class RecordingGroup(RankGroup):
    """Rank 0 of two; the other one computes nothing."""

    rank, num_ranks = 0, 2

    def __init__(self) -> None:
        self.events: list[str] = []

    def send(self, words: NDArray[np.int32]) -> None:
        self.events.append(Order(int(words[0])).name)

    def receive(self) -> NDArray[np.int32]:
        raise AssertionError("rank 0 receives nothing")

    def broadcast(self, tensor: torch.Tensor) -> None:
        self.events.append("broadcast")

    def all_reduce(self, tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous()
        self.events.append("all_reduce")

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        assert tensor.is_contiguous()
        self.events.append("gather")
        return [tensor, tensor]

    def close(self) -> None:
        self.events.append("close")


@pytest.fixture
def group() -> RecordingGroup:
    return RecordingGroup()


def _sent(group: RecordingGroup) -> list[str]:
    events, group.events = group.events, []
    return events


def test_a_step_is_one_message_two_sums_a_layer_and_one_gather(tmp_path: Path, group: RecordingGroup) -> None:
    engine = Engine(save_model(tmp_path, "qwen3", num_hidden_layers=3), CONFIG, ranks=group)
    assert _sent(group) == ["LOAD_FOLDER", "WEIGHTS_CHANGED"]
    engine.add(REQUEST)
    sums = ["all_reduce"] * (1 + 2 * 3)
    engine.step()
    assert _sent(group) == ["STEP", *sums], "a part of the prompt gives no logits"
    for _ in range(2):
        engine.step()
        assert _sent(group) == ["STEP", *sums, "gather"]
    engine.pause("keep")
    engine.step()
    engine.stats()
    engine.abort(["0"])
    assert _sent(group) == []
    engine.close()
    engine.close()
    assert _sent(group) == ["CLOSE", "close"]


def test_each_way_to_new_weights_is_told(tmp_path: Path, group: RecordingGroup) -> None:
    engine = Engine(save_model(tmp_path, "qwen2"), CONFIG, ranks=group)
    weights = weights_of("qwen2", 1)
    _sent(group)
    engine.load_weights(1, weights)
    assert _sent(group) == ["PUT_WEIGHTS", "broadcast", "WEIGHTS_CHANGED"]
    checksum = fingerprint(engine.named_weights())
    assert _sent(group) == ["GATHER_WEIGHTS", "gather"]
    engine.begin_weight_update(2)
    engine.update_weights({"lm_head.weight": weights["lm_head.weight"]})
    assert _sent(group) == [], "a tied head is compared and goes nowhere"
    engine.update_weights({name: weights[name] for name in weights if name != "lm_head.weight"})
    assert _sent(group) == ["KEEP_WEIGHTS", "broadcast"]
    engine.finish_weight_update(checksum)
    assert _sent(group) == [
        *("GATHER_STAGED_WEIGHTS", "gather"),
        *("SWAP_STAGED_WEIGHTS", "DROP_STAGED_WEIGHTS", "WEIGHTS_CHANGED"),
    ]
    engine.begin_weight_update(3)
    engine.abandon_weight_update()
    assert _sent(group) == ["DROP_STAGED_WEIGHTS"]
    none = torch.zeros(0, dtype=torch.int64)
    change = {"model.norm.weight": (none, none.float())}
    with pytest.raises(WeightsRefusedError):
        engine.apply_weight_delta(3, 2, change, checksum + 1)
    changed = ["PUT_CHANGES", "broadcast", "broadcast", "GATHER_WEIGHTS", "gather"]
    assert _sent(group) == [*changed, "TAKE_BACK_CHANGES"]
    engine.apply_weight_delta(3, 2, change, checksum)
    assert _sent(group) == [*changed, "KEEP_CHANGES", "WEIGHTS_CHANGED"]
    engine.release_memory(weights=True)
    engine.restore_memory()
    assert _sent(group) == ["RELEASE_KV_CACHE", "RELEASE_WEIGHTS", "RESTORE_WEIGHTS", "RESTORE_KV_CACHE"]


@given(sizes=st.lists(st.integers(0, 2**27), max_size=12))
def test_weights_go_in_buckets_that_are_as_full_as_may_be(sizes: list[int]) -> None:
    num_bytes = {str(place): size for place, size in enumerate(sizes)}
    found = list(buckets(num_bytes))
    assert [name for bucket in found for name in bucket] == list(num_bytes)
    totals = [sum(num_bytes[name] for name in bucket) for bucket in found]
    assert all(total <= 2**26 or len(bucket) == 1 for total, bucket in zip(totals, found, strict=True))
    assert all(total + num_bytes[following[0]] > 2**26 for total, following in zip(totals, found[1:], strict=False))


def test_ranks_of_another_number_are_refused(tmp_path: Path, group: RecordingGroup) -> None:
    group.num_ranks = 3
    with pytest.raises(UserError, match="tensor_parallel_size=2, but this is rank 0 of 3"):
        Engine(save_model(tmp_path, "qwen3"), CONFIG, ranks=group)


def _followers(of: int) -> list[psutil.Process]:
    return [
        process for process in psutil.Process(of).children() if "rlserve.engine.parallel.follower" in process.cmdline()
    ]


def test_a_lost_follower_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path, "qwen3"), tensor_parallel_size=2)
    engine.add(REQUEST)
    engine.step()
    (follower,) = _followers(os.getpid())
    follower.kill()
    follower.wait(END_S)
    with pytest.raises(WorkerFailedError, match=r"rank 0 of 2: .* failed, a rank is lost or does not answer"):
        run(engine)
    for call in (engine.step, lambda: engine.load_weights(1, weights_of("qwen3", 1)), engine.release_memory):
        with pytest.raises((WorkerFailedError, RuntimeError)):
            call()
    with pytest.raises(WeightsRefusedError, match="an update of the weights failed in the middle"):
        engine.step()
    engine.close()


_LEADER = """
import sys
from rlserve.distributed.addresses import free_port
from rlserve.engine import Engine, EngineConfig, Request, SamplingParams
engine = Engine({folder!r}, EngineConfig(**{config!r}))
engine.add(Request(id="0", prompt_token_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=30)))
engine.step()
print("ready", flush=True)
{end}
"""


@contextmanager
def _leader(folder: Path, end: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process with an engine, and the process that follows it."""
    program = _LEADER.format(config=vars(CONFIG), folder=str(folder), end=end)
    leader = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        (follower,) = _followers(leader.pid)
        yield leader, follower
    finally:
        leader.kill()
        leader.communicate()


def test_a_follower_whose_leader_is_killed_ends_by_itself(tmp_path: Path) -> None:
    with _leader(save_model(tmp_path, "qwen3"), "sys.stdin.read()") as (leader, follower):
        leader.kill()
        leader.wait(END_S)
        follower.wait(END_S)


def test_a_follower_ends_with_a_leader_that_says_nothing(tmp_path: Path) -> None:
    with _leader(save_model(tmp_path, "qwen3"), "sys.stdin.readline(); raise SystemExit(3)") as (leader, follower):
        leader.communicate("go on\n", timeout=END_S)
        follower.wait(END_S)
        assert leader.returncode == 3


def test_a_follower_that_is_told_to_end_ends_in_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = make_engine(save_model(tmp_path, "qwen3"), tensor_parallel_size=2)
    (follower,) = _followers(os.getpid())
    capfd.readouterr()
    engine.close()
    assert not follower.is_running()
    assert capfd.readouterr().err == ""


def test_an_engine_that_is_forgotten_ends_its_follower(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path, "qwen3"), tensor_parallel_size=2)
    (follower,) = _followers(os.getpid())
    del engine
    follower.wait(END_S)


_FOLLOWER = """
import sys
from rlserve.engine import EngineConfig, RankPlace, follow, join_ranks
config = EngineConfig(**{config!r})
group = join_ranks(RankPlace(rank=1, num_ranks=2, host="127.0.0.1", port={port}, secret="s"), config)
follow({folder!r}, config, group)
"""


@contextmanager
def _own_rank(folder: Path) -> Iterator[tuple[RankGroup, subprocess.Popen[str]]]:
    """Rank 0 here and rank 1 in a process of the user's own making."""
    port = free_port()
    program = _FOLLOWER.format(config=vars(CONFIG), port=port, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", program], text=True)
    try:
        yield join_ranks(RankPlace(rank=0, num_ranks=2, host="127.0.0.1", port=port, secret="s"), CONFIG), process
    finally:
        process.kill()
        process.communicate()


def test_a_thread_that_follows_says_what_it_ended_of(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3")
    with listen() as listening:
        host, port = listening.getsockname()
        places = [RankPlace(rank=rank, num_ranks=2, host=host, port=port, secret="s") for rank in range(2)]
        follower = FollowerThread(folder, CONFIG, places[1])
        group = join_ranks(places[0], CONFIG, listening=listening)
    with pytest.raises(WorkerFailedError, match=r"rank 1 still follows rank 0 after 0\.01 s"):
        follower.wait(0.01)
    assert (follower.has_ended, follower.failure) == (False, None)
    group.close()
    with pytest.raises(WorkerFailedError, match=r"rank 1 of 2: .* failed, a rank is lost"):
        follower.wait(END_S)
    assert follower.has_ended
    alone = FollowerThread(folder, CONFIG, replace(places[1], port=free_port()), timeout_s=0.1)
    with pytest.raises(DeadlineExceededError, match="rank 0 did not serve its store"):
        alone.wait(END_S)


def test_ranks_started_by_the_user_compute_and_one_that_hangs_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3")
    expected = run(make_engine(folder), [REQUEST])["0"].samples[0]
    with _own_rank(folder) as (group, process):
        engine = Engine(folder, CONFIG, ranks=group)
        assert run(engine, [REQUEST])["0"].samples[0].token_ids == expected.token_ids
        engine.add(REQUEST)
        engine.step()
        process.send_signal(signal.SIGSTOP)
        group._messages._set_default_timeout(timedelta(seconds=0.5))  # type: ignore[attr-defined]
        with pytest.raises(WorkerFailedError, match="does not answer"):
            run(engine)
        process.send_signal(signal.SIGCONT)
        assert process.wait(END_S) != 0, "the others fail as well then"


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(DeadlineExceededError, match="rank 1 of 2 did not join at"):
        join_ranks(RankPlace(rank=0, num_ranks=2, host="127.0.0.1", port=port, secret="s"), CONFIG, timeout_s=0.1)
    with pytest.raises(DeadlineExceededError, match="rank 0 did not serve its store"):
        join_ranks(RankPlace(rank=1, num_ranks=2, host="127.0.0.1", port=port, secret="s"), CONFIG, timeout_s=0.1)


def test_a_follower_that_fails_at_its_start_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerFailedError, match="rank 1 ended with status 1"):
        make_engine(save_model(tmp_path, "qwen3"), tensor_parallel_size=2)


def test_a_follower_ends_with_a_leader_that_it_never_met(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        host, port = deaf.getsockname()
        leader = RankPlace(rank=0, num_ranks=2, host=host, port=port, secret="s")
        processes = RankProcesses(save_model(tmp_path, "qwen3"), CONFIG, leader)
        (follower,) = processes._processes
        processes.check()
        assert follower.stdin is not None
        follower.stdin.close()
        assert follower.wait(END_S) == 1
        with pytest.raises(WorkerFailedError, match="rank 1 ended with status 1"):
            processes.check()


def test_an_engine_that_cannot_be_made_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is less than one block"):
        make_engine(save_model(tmp_path, "qwen3"), tensor_parallel_size=2, num_blocks=None, kv_cache_bytes=10)
    assert _followers(os.getpid()) == []


def test_to_follow_a_model_that_does_not_divide_is_refused(tmp_path: Path, group: RecordingGroup) -> None:
    group.rank, group.num_ranks = 1, 5
    with pytest.raises(UserError, match="does not divide by 5"):
        follow(save_model(tmp_path, "qwen3"), CONFIG, group)
    assert _sent(group) == ["close"]
