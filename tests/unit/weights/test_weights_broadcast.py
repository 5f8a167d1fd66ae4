"""Weights by collective broadcast, over gloo: who is in the group, and what becomes of it when a member is lost."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_receivers import ReceiverProcess, receiver_processes

from rlserve.distributed.addresses import LOOPBACK, free_port
from rlserve.distributed.store import connect
from rlserve.errors import ArgumentLostError, ConfigurationError
from rlserve.weights.broadcast.desk import GONE, Answer, AskingDesk, ask_for
from rlserve.weights.broadcast.membership import Ask, Standing, plan_round
from rlserve.weights.config import NcclConfig
from rlserve.weights.packing import PackedWeights, take_snapshot
from rlserve.weights.transports.factory import create_receiving_end
from rlserve.weights.transports.nccl import NcclReceivingEnd, NcclSendingEnd, ParcelPlace

CONFIG = NcclConfig(backend="gloo", host=LOOPBACK, gather_s=0.5, peer_timeout_s=3.0)


def ask(number: int, member: str, *, parcel: str = "p", generation: int = 0, time_s: float = 0.0) -> Ask:
    return Ask(number=number, member=member, parcel=parcel, generation=generation, time_s=time_s)


# -- who is in the group -------------------------------------------------------------------------------------


def test_the_group_stays_where_all_of_the_last_time_ask_again_and_nobody_waits() -> None:
    standing = Standing(members=("a", "b"), generation=3)
    plan = plan_round([ask(2, "b", generation=3), ask(1, "a", generation=3)], standing, now_s=0.0, gather_s=9.0)
    assert plan is not None
    assert (plan.members, plan.is_same_group) == (("a", "b"), True)


def test_others_are_waited_for_no_longer_than_agreed() -> None:
    standing = Standing(members=("a", "b"), generation=1)
    asks = [ask(1, "a", generation=1, time_s=10.0)]
    assert plan_round(asks, standing, now_s=10.9, gather_s=1.0) is None
    plan = plan_round(asks, standing, now_s=11.0, gather_s=1.0)
    assert plan is not None
    assert (plan.members, plan.is_same_group) == (("a",), False)


def test_one_that_has_left_the_group_makes_a_new_one_of_the_same_members() -> None:
    standing = Standing(members=("a", "b"), generation=2)
    plan = plan_round([ask(1, "a", generation=2), ask(2, "b")], standing, now_s=0.0, gather_s=9.0)
    assert plan is not None
    assert (plan.members, plan.is_same_group) == (("a", "b"), False)


def test_of_one_that_asks_twice_the_last_counts() -> None:
    plan = plan_round([ask(1, "a", parcel="old"), ask(4, "a")], Standing(), now_s=1.0, gather_s=1.0)
    assert plan is not None
    assert [each.number for each in plan.asks] == [4]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("pqr"), st.integers(0, 2), st.floats(0, 5)), max_size=9
    ),
    st.sets(st.sampled_from("abcd")),
    st.floats(0, 10),
)
def test_every_member_has_asked_for_the_parcel_and_is_in_the_group_once(
    asked: list[tuple[str, str, int, float]], standing: set[str], now_s: float
) -> None:
    asks = [
        ask(number, member, parcel=parcel, generation=generation, time_s=time_s)
        for number, (member, parcel, generation, time_s) in enumerate(asked, 1)
    ]
    group_before = Standing(members=tuple(sorted(standing)), generation=2)
    plan = plan_round(asks, group_before, now_s=now_s, gather_s=1.0)
    if plan is None:
        first = min({each.member: each for each in asks}.values(), key=lambda each: each.number, default=None)
        assert first is None or now_s - first.time_s < 1.0
        return
    assert list(plan.members) == sorted(set(plan.members))
    newest = {each.member: each for each in asks}
    assert set(plan.asks) == {each for each in newest.values() if each.parcel == plan.parcel}
    if plan.is_same_group:
        assert plan.members == group_before.members
        assert {each.generation for each in plan.asks} == {2}


# -- how they meet -------------------------------------------------------------------------------------------


def test_who_asks_is_answered_and_one_that_dies_while_it_asks_holds_nobody_up() -> None:
    port = free_port()
    served = connect(LOOPBACK, port, "s", timeout_s=5.0, serve=True)
    there = connect(LOOPBACK, port, "s", timeout_s=5.0)
    desk = AskingDesk(served)
    there.add("num_asks", 1)  # and dies
    answer = Answer(generation=2, rank=1, members=("me",), port=7)
    served.set("answer/2", '{"generation": 2, "rank": 1, "members": ["me"], "port": 7}')
    assert ask_for(there, "p", member="me", generation=1, timeout_s=5.0) == answer
    (found,) = desk.new_asks()
    assert (found.number, found.member, found.parcel, found.generation) == (2, "me", "p", 1)
    assert desk.new_asks() == []
    desk.answer(found, GONE)
    assert served.check(["answer/2"])
    assert GONE.is_gone


# -- in processes --------------------------------------------------------------------------------------------


class Sender:
    """A sending end, and what it sent."""

    def __init__(self) -> None:
        self.end = NcclSendingEnd(CONFIG)
        self.version = 0

    def send(self, *needed: int) -> tuple[ParcelPlace, str]:
        """The next version; its cargo and SHA-256."""
        self.version += 1
        packed = packed_weights(self.version)
        cargo = self.end.send(packed)
        self.end.discard({*needed, self.version})
        return cargo, hashlib.sha256(packed.payload.numpy()).hexdigest()


def packed_weights(version: int) -> PackedWeights:
    tensors = {"w": torch.from_numpy(np.random.default_rng(version).normal(size=300_000).astype(np.float32))}
    return take_snapshot(version, tensors, torch.float32).pack()


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    yield made
    made.end.discard(())


@pytest.fixture
def receivers() -> Iterator[list[ReceiverProcess]]:
    with receiver_processes(2, partial(create_receiving_end, CONFIG)) as started:
        yield started


def test_processes_get_every_bit_by_one_group_and_go_on_without_one_that_is_lost(
    sender: Sender, receivers: list[ReceiverProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = receivers

    def generation() -> int:
        assert sender.end._server is not None
        return sender.end._server._generation

    def all_receive(*those: ReceiverProcess) -> None:
        cargo, digest = sender.send()
        for receiver in those:
            receiver.send(cargo)
        assert [receiver.result() for receiver in those] == [digest] * len(those)

    all_receive(first, second)
    formed = generation()
    with monkeypatch.context() as patch:
        patch.setattr(sender.end._server, "_config", replace(CONFIG, gather_s=1000.0))
        for _ in range(3):
            all_receive(first, second)
    assert generation() == formed, "the same members: the same group, and nobody waits"

    cargo, digest = sender.send()
    assert second.process.pid is not None
    os.kill(second.process.pid, signal.SIGSTOP)  # in mid-broadcast, or before it
    for receiver in receivers:
        receiver.send(cargo)
    assert first.result() == digest, "after it was named, and left out"
    os.kill(second.process.pid, signal.SIGCONT)
    assert second.result() == digest, "it is late, and gets a broadcast of its own"

    second.kill()
    all_receive(first)


def test_the_parts_of_several_senders_come_each_by_a_group_that_stays(
    sender: Sender, receivers: list[ReceiverProcess]
) -> None:
    other, here = Sender(), NcclReceivingEnd(CONFIG)
    for _ in range(3):
        for each in (sender, other):
            cargo, digest = each.send()
            receivers[0].send(cargo)
            assert hashlib.sha256(here.receive(cargo).payload.numpy()).hexdigest() == digest
            assert receivers[0].result() == digest
    servers = [each.end._server for each in (sender, other)]
    assert [None if server is None else server._generation for server in servers] == [1, 1]
    assert len(here._senders) == 2
    other.end.discard(())
    for _ in range(2):
        here.receive(sender.send()[0])
    assert len(here._senders) == 1, "one that had no part in a version is left"


def test_one_that_is_lost_before_it_joins_is_named_and_the_sender_goes_on(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    cargo, _ = sender.send()
    store = connect(cargo.host, cargo.port, cargo.secret, timeout_s=5.0)
    with caplog.at_level(logging.WARNING):
        answer = ask_for(store, cargo.parcel, member="the late r1", generation=0, timeout_s=5.0)
        assert answer.members == ("the late r1",)  # and it does not come
        receiver = NcclReceivingEnd(CONFIG)
        assert receiver.receive(cargo).payload.equal(packed_weights(1).payload)
    assert "did not join" in caplog.text
    assert "rank 1 is the late r1" in caplog.text


def test_one_that_is_lost_in_the_group_that_stands_is_named_and_a_new_group_is_formed(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = NcclReceivingEnd(CONFIG)
    receiver.receive(sender.send()[0])
    (known,) = receiver._senders.values()
    cargo, digest = sender.send()
    with caplog.at_level(logging.WARNING):
        answer = ask_for(known.store, cargo.parcel, member=receiver._member, generation=known.generation, timeout_s=5.0)
        assert answer.generation == known.generation  # and it takes no part in the broadcast
        assert hashlib.sha256(receiver.receive(cargo).payload.numpy()).hexdigest() == digest
    assert f"broadcast failed, no answer from {receiver._member}" in caplog.text
    assert known.generation == answer.generation + 1


def test_a_version_that_is_gone_can_be_sent_again(sender: Sender) -> None:
    receiver = NcclReceivingEnd(CONFIG)
    old, _ = sender.send()
    sender.send()
    with pytest.raises(ArgumentLostError, match="version 1 of the weights is not kept any more"):
        receiver.receive(old)
    sender.version = 0
    again, digest = sender.send()
    assert hashlib.sha256(receiver.receive(again).payload.numpy()).hexdigest() == digest
    sender.end.discard(())
    with pytest.raises(ArgumentLostError, match="version 1 of the weights is gone with its sender"):
        receiver.receive(again)


def test_the_secret_of_a_sender_is_not_shown(sender: Sender) -> None:
    cargo, _ = sender.send()
    assert cargo.secret not in repr(cargo)


def test_deadlines_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        NcclConfig(gather_s=-1.0, peer_timeout_s=500.0)
    assert [problem.key for problem in caught.value.problems] == ["gather_s", "peer_timeout_s"]
