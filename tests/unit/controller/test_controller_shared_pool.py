"""A run on a cluster that others share: what it says of itself, lends, and takes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from controller_fakes import make_gang, settled, until
from reallocation_setting import Setting, run
from test_controller_reallocation_nodes import NewcomersRollOut, a_node

from rlserve.controller.shared_pool import HeldGang, gangs_to_lend, holding_of, within
from rlserve.errors import PoolError
from rlserve.manager.gang_table import GangState
from rlserve.pool.sharing.base import Allowance, HeldSlots, Neighbour, Place
from rlserve.tracking.events import FailureEvent
from rlserve.tracking.share_event import ShareEvent

PLACE = ("a", "cpu")


def held(name: str, state: GangState, *, node: str = "a", leaving: bool = False) -> HeldGang:
    return HeldGang(gang=make_gang(name, node_id=node), state=state, leaving=leaving)


def ids(*gangs: HeldGang, allowed: Mapping[Place, int]) -> list[str]:
    return [gang.id for gang in gangs_to_lend(gangs, allowed)]


SIX = (
    held("t0", GangState.TRAIN),
    held("t1", GangState.TRAIN),
    held("r0", GangState.ROLLOUT),
    held("r1", GangState.CALLED_TO_TRAIN),
    held("r2", GangState.ROLLOUT),
    held("idle", GangState.IDLE),
)


def test_what_is_lent_first_has_no_role_then_rolls_out_and_the_last_of_a_role_stays() -> None:
    order = ["idle", "r2", "r1", "t1"]
    for count in range(7):
        assert ids(*SIX, allowed={PLACE: 6 - count})[:4] == order[:count]
    assert ids(*SIX, allowed={PLACE: 7}) == []
    assert ids(*SIX, allowed={("b", "cpu"): 0}) == [], "nothing of it is there"


def test_what_is_being_emptied_is_not_asked_for_twice() -> None:
    gangs = (*SIX[:5], held("idle", GangState.IDLE, leaving=True))
    assert ids(*gangs, allowed={PLACE: 5}) == []
    assert ids(*gangs, allowed={PLACE: 4}) == ["r2"]


def test_what_a_run_tells_of_itself() -> None:
    gangs = (*SIX, held("elsewhere", GangState.ROLLOUT, node="b", leaving=True))
    assert holding_of(gangs) == HeldSlots(
        held={PLACE: 6, ("b", "cpu"): 1},
        lendable={PLACE: 3, ("b", "cpu"): 1},
        leaving={("b", "cpu"): 1},
    )


def test_a_run_sees_of_its_nodes_what_it_may_have() -> None:
    nodes = (a_node("a", cpu=4), a_node("b", cpu=2))
    assert within(nodes, {PLACE: 3}) == (a_node("a", cpu=3), a_node("b", cpu=0))


class FakeSharing:
    """Answers what the test says."""

    def __init__(self, count: int) -> None:
        self.allowance = Allowance(slots={PLACE: count})
        self.claims: list[tuple[HeldSlots, int | None]] = []
        self.is_silent = False

    def claim(self, holding: HeldSlots, useful: int | None) -> Allowance:
        self.claims.append((holding, useful))
        if self.is_silent:
            raise PoolError("the broker does not answer")
        return self.allowance

    def allow(self, count: int, *, num_lent: int) -> None:
        neighbours = (Neighbour(name="urgent", priority=3, num_slots=num_lent),)
        self.allowance = Allowance(slots={PLACE: count}, num_lent=num_lent, neighbours=neighbours)


def run_shared(scenario: Callable[[Setting, FakeSharing], Awaitable[None]]) -> None:
    """Four gangs on one node, of which the last rolls out; newcomers roll out too."""
    sharing = FakeSharing(4)
    gangs = tuple(make_gang(f"cpu/{number}", node_id="a") for number in range(4))

    async def watched(setting: Setting) -> None:
        setting.nodes = (a_node("a", cpu=4),)
        watching = setting.context.tasks.create_task(setting.watch.watch())
        await scenario(setting, sharing)
        watching.cancel()

    run(watched, gangs=gangs, sharing=sharing, policy=NewcomersRollOut())


def test_gangs_are_lent_as_after_a_notice_and_their_slots_come_back_as_newcomers() -> None:
    async def scenario(setting: Setting, sharing: FakeSharing) -> None:
        await until(lambda: bool(sharing.claims))
        assert sharing.claims[0] == (HeldSlots(held={PLACE: 4}), 4)
        sharing.allow(3, num_lent=1)
        await until(lambda: setting.state("cpu/2") is GangState.GONE)
        assert setting.log == ["trainers remove cpu/2"], "the last that rolls out stays"
        assert setting.book.leaving["cpu/2"] == "its slots are lent to another run: urgent (priority 3)"
        await settled()
        assert set(setting.book.table.gang_ids) == {f"cpu/{number}" for number in range(4)}
        sharing.allow(4, num_lent=0)
        await until(lambda: "cpu/4" in setting.book.table.gang_ids)
        await until(lambda: setting.state("cpu/4") is GangState.ROLLOUT)
        assert setting.records(FailureEvent) == []
        assert setting.counters.worker_failures == 0
        told = [(event.slots, event.num_lent, event.runs) for event in setting.records(ShareEvent)]
        assert told == [({"cpu": 4}, 0, {}), ({"cpu": 3}, 1, {"urgent": 1}), ({"cpu": 4}, 0, {"urgent": 0})]

    run_shared(scenario)


def test_what_rolls_out_is_lent_before_what_trains() -> None:
    async def scenario(setting: Setting, sharing: FakeSharing) -> None:
        sharing.allow(5, num_lent=0)
        setting.nodes = (a_node("a", cpu=5),)
        await until(lambda: "cpu/4" in setting.book.table.gang_ids)
        await until(lambda: setting.state("cpu/4") is GangState.ROLLOUT)
        sharing.allow(4, num_lent=1)
        await until(lambda: setting.state("cpu/4") is GangState.GONE)
        assert setting.log[-1] == "replicas leave cpu/4"
        assert len(setting.trainers.members) == 3

    run_shared(scenario)


def test_without_a_broker_everything_stays_as_it_is() -> None:
    async def scenario(setting: Setting, sharing: FakeSharing) -> None:
        sharing.is_silent = True
        setting.nodes = (a_node("a", cpu=9),)
        num_claims = len(sharing.claims)
        await until(lambda: len(sharing.claims) >= num_claims + 3)
        assert len(setting.book.table.gang_ids) == 4
        assert not setting.book.leaving
        sharing.is_silent = False
        sharing.allow(5, num_lent=0)
        await until(lambda: "cpu/4" in setting.book.table.gang_ids)

    run_shared(scenario)
