"""What operators have done to replicas, and what becomes of those that do not do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from replica_fakes import FakeReplica, make_pool, until

from rlserve.errors import WorkerLostError
from rlserve.serving.admin.pool_operations import PoolOperations
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.replicas.messages import Done, Order, OrderAction
from rlserve.serving.replicas.replica import Replica

FOLDER = Path("/new")


class Ordered:
    """A pool whose replicas do at once what they are ordered, but for what a test says."""

    def __init__(self, replicas: list[FakeReplica], monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, OrderAction]] = []
        self.fail: Mapping[tuple[str, OrderAction], str | type[WorkerLostError] | None] = {}
        """What becomes of an order to a replica: an error, lost, or None for never."""
        self._replicas = replicas

        async def order(replica: Replica, order: Order) -> Done:
            return await self._carry_out(replica.name, order.action)

        monkeypatch.setattr(FakeReplica, "order", order)

    async def _carry_out(self, name: str, action: OrderAction) -> Done:
        self.done.append((name, action))
        outcome = self.fail.get((name, action), "")
        if outcome is None:
            await asyncio.Event().wait()
        if outcome is WorkerLostError:
            raise WorkerLostError(f"replica {name} has no process")
        return Done(number=0, error=str(outcome) or None, pause_s=0.002)

    @property
    def ended(self) -> list[str]:
        """Replicas whose process was killed."""
        return [replica.name for replica in self._replicas if replica.ends.is_set()]


@asynccontextmanager
async def operated(
    monkeypatch: pytest.MonkeyPatch, num_replicas: int = 2, num_wanted: int | None = None, timeout_s: float = 0.05
) -> AsyncIterator[tuple[PoolOperations, Ordered, list[FakeReplica]]]:
    pool, replicas = make_pool(num_replicas, num_wanted=num_wanted)
    async with pool.running():
        num = num_replicas if num_wanted is None else num_wanted
        await until(lambda: pool.num_ready == num)
        yield PoolOperations(pool, timeout_s=timeout_s), Ordered(replicas, monkeypatch), replicas


def test_weights_are_staged_everywhere_before_any_are_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with operated(monkeypatch) as (operations, ordered, replicas):
            taken = await operations.load_weights(FOLDER)
            assert (taken.weight_version, taken.num_replicas, taken.pause_s) == (1, 2, 0.002)
            assert [action for _, action in ordered.done] == ["stage", "stage", "swap", "swap"]
            assert [(each.start.model_path, each.start.weight_version) for each in replicas] == [("/new", 1)] * 2
            assert [each.weight_version for each in await operations.status()] == [1, 1], "before the next beats"
            assert ordered.ended == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("outcome", "status"), [("another model", 400), (None, 503)])
def test_weights_that_one_refuses_or_does_not_get_ready_change_nothing(
    monkeypatch: pytest.MonkeyPatch, outcome: str | None, status: int
) -> None:
    async def scenario() -> None:
        async with operated(monkeypatch) as (operations, ordered, replicas):
            ordered.fail = {("1", "stage"): outcome}
            with pytest.raises(ApiError) as raised:
                await operations.load_weights(FOLDER)
            assert raised.value.status == status
            assert ordered.done == [("0", "stage"), ("1", "stage"), ("0", "discard")]
            assert [each.start.weight_version for each in replicas] == [0, 0]
            assert ordered.ended == []

    asyncio.run(scenario())


@pytest.mark.parametrize("outcome", ["out of memory", WorkerLostError, None])
def test_who_does_not_swap_starts_anew_with_the_new_weights(
    monkeypatch: pytest.MonkeyPatch, outcome: str | type[WorkerLostError] | None
) -> None:
    async def scenario() -> None:
        async with operated(monkeypatch) as (operations, ordered, replicas):
            ordered.fail = {("1", "swap"): outcome}
            taken = await operations.load_weights(FOLDER)
            assert (taken.weight_version, taken.num_replicas) == (1, 1)
            assert ordered.ended == ["1"]
            assert replicas[1].start.weight_version == 1

    asyncio.run(scenario())


def test_a_replica_that_started_with_the_new_weights_meanwhile_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        pool, replicas = make_pool(2, num_wanted=1)
        async with pool.running():
            await until(lambda: pool.num_ready == 1)
            operations, ordered = PoolOperations(pool, timeout_s=5), Ordered(replicas, monkeypatch)
            carry_out = ordered._carry_out

            async def swap_while_another_starts(name: str, action: OrderAction) -> Done:
                if action == "swap":
                    pool.resize(2)
                    await until(lambda: pool.num_ready == 2)
                return await carry_out(name, action)

            monkeypatch.setattr(ordered, "_carry_out", swap_while_another_starts)
            await operations.load_weights(FOLDER)
            assert [replica.started_version for replica in replicas] == [0, 1]
            assert ordered.ended == []

    asyncio.run(scenario())


def test_a_replica_that_started_with_the_old_weights_meanwhile_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        pool, replicas = make_pool(2, num_wanted=1)
        async with pool.running():
            await until(lambda: pool.num_ready == 1)
            operations, ordered = PoolOperations(pool, timeout_s=5), Ordered(replicas, monkeypatch)
            replicas[1].becomes_ready = False
            pool.resize(2)
            await until(lambda: str(replicas[1].state) == "starting")
            await operations.load_weights(FOLDER)
            assert ordered.ended == ["1"]

    asyncio.run(scenario())


def test_a_replica_that_starts_later_has_the_weights_of_now_and_stands_still_if_all_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with operated(monkeypatch, num_replicas=2, num_wanted=1) as (operations, ordered, replicas):
            await operations.load_weights(FOLDER)
            await operations.pause()
            assert {name for name, _ in ordered.done} == {"0"}
            later = replicas[1].start
            assert (later.model_path, later.weight_version, later.is_paused) == ("/new", 1, True)
            assert ordered.ended == [], "one that rests has nothing to start anew"

    asyncio.run(scenario())


def test_a_pause_that_one_does_not_hear_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with operated(monkeypatch) as (operations, ordered, _):
            ordered.fail = {("0", "pause"): None}
            with pytest.raises(ApiError, match="not done by all replicas") as raised:
                await operations.pause()
            assert raised.value.status == 503

    asyncio.run(scenario())


def test_what_is_not_there_is_not_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with operated(monkeypatch) as (operations, _, _replicas):
            with pytest.raises(ApiError, match="there are 0, 1") as raised:
                operations.drain("7")
            assert raised.value.status == 404
            operations.drain("1")
            assert [each.is_drained for each in await operations.status()] == [False, True]
            operations.undrain("1")
            assert not any(each.is_drained for each in await operations.status())

    asyncio.run(scenario())
