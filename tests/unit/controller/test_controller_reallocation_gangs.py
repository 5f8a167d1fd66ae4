"""Gangs of two slots: they move as one, and the worker of them that is lost is replaced."""

from __future__ import annotations

from typing import Any

import pytest
from controller_fakes import until
from reallocation_setting import GANGS, Setting, run

from rlserve.errors import WorkerFailedError
from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import Move
from rlserve.manager.roles import Role
from rlserve.tracking.events import Decision, FailureEvent, SlotEvent


def test_a_gang_moves_as_one() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: setting.state("u0+u1") is GangState.ROLLOUT)
        assert setting.log == ["trainers remove u0 u1", "replicas join u0"]
        assert (setting.fleet["u0"].arguments["start_rollout"], setting.fleet["u1"].arguments["follow_rollout"]) == (
            [(place_of(setting, "u0"),)],
            [(place_of(setting, "u1"),)],
        )
        assert setting.counters.moves_to_rollout == 1
        for slot_id in ("u0", "u1"):
            assert [event.owner for event in setting.records(SlotEvent) if event.slot_id == slot_id][-1] == "rollout"
        (decision,) = [record for record in setting.records(Decision) if record.action != "hold"]
        assert (decision.slot_id, decision.num_train) == ("u0+u1", 4)

    run(scenario, Move(gang_id="u0+u1", to=Role.ROLLOUT), gangs=GANGS)


def place_of(setting: Setting, slot_id: str) -> Any:
    """The place in its engine that a worker was given last."""
    arguments = setting.fleet[slot_id].arguments
    ((*_, (place,)),) = [calls for method, calls in arguments.items() if method in ("start_rollout", "follow_rollout")]
    return place


def test_the_ranks_of_an_engine_stay_formed_until_one_is_lost() -> None:
    async def scenario(setting: Setting) -> None:
        first = [place_of(setting, slot_id) for slot_id in ("r0", "r1")]
        assert [(place.rank, place.num_ranks, place.port) for place in first] == [(0, 2, 1), (1, 2, 1)]
        assert len({place.secret for place in first}) == 1
        gang = setting.book["r0+r1"]
        await setting.recovery.roles.give_up(gang, "test")
        await setting.recovery.roles.take(gang, Role.ROLLOUT, "test")
        assert [place_of(setting, slot_id) for slot_id in ("r0", "r1")] == first
        setting.fleet["r1"].kill()
        setting.lose("r0", Role.ROLLOUT, WorkerFailedError("a rank is lost"))
        await until(lambda: setting.state("r0+r1") is GangState.ROLLOUT)
        again = [place_of(setting, slot_id) for slot_id in ("r0", "r1")]
        assert again[0].secret == again[1].secret != first[0].secret

    run(scenario, gangs=GANGS)


@pytest.mark.parametrize("lost", ["r0", "r1"])
def test_the_worker_that_a_replica_lost_is_replaced_and_no_other(lost: str) -> None:
    """Its leader only knows that a rank is lost."""

    async def scenario(setting: Setting) -> None:
        setting.fleet[lost].kill()
        setting.lose("r0", Role.ROLLOUT, WorkerFailedError("the engine stopped: a rank is lost"))
        await until(lambda: setting.state("r0+r1") is GangState.ROLLOUT)
        assert [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"] == [lost]
        assert [event.slot_id for event in setting.records(FailureEvent)] == [lost]
        assert (setting.counters.worker_failures, setting.counters.engine_restarts) == (1, 1)

    run(scenario, gangs=GANGS)


def test_a_gang_of_trainers_that_loses_one_comes_back_as_a_whole() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["u1"].kill()
        setting.lose("u1", Role.TRAIN)
        await until(lambda: setting.state("u0+u1") is GangState.TRAIN)
        assert setting.log == ["trainers prepare u0 u1", "trainers add u0 u1"]
        assert [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"] == ["u1"]

    run(scenario, gangs=GANGS)


def test_the_last_gang_of_trainers_goes_on_while_a_worker_of_it_is_replaced() -> None:
    async def scenario(setting: Setting) -> None:
        setting.lose("t1", Role.TRAIN)
        assert setting.trainers.members == ["t0"]
        assert setting.state("t0+t1") is GangState.TRAIN
        assert setting.book.repairing == {"t0+t1"}
        await until(lambda: not setting.book.repairing)
        assert setting.trainers.members == ["t0", "t1"]
        assert [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"] == ["t1"]
        assert setting.counters.worker_failures == 1

    run(scenario, gangs=(GANGS[0], GANGS[2]))
