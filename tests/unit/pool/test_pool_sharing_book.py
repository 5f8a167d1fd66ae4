"""The broker's book: what runs are told, as they come, give up, take, and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.errors import PoolError
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.gangs import Node
from rlserve.pool.sharing.base import Allowance, Claim, HeldSlots, Place
from rlserve.pool.sharing.book import QUIET_S, SILENT_S, Cluster, SharingBook
from rlserve.pool.sharing.config import ShareConfig
from rlserve.pool.sharing.member import Member, claim_of
from rlserve.pool.sharing.strangers import WINDOW_S

TYPE = "cpu-a"


def a_node(name: str, count: int, *, draining: bool = False) -> Node:
    return Node(id=name, name=name, counts={TYPE: count}, is_draining=draining)


def a_claim(name: str, **changes: Any) -> Claim:
    return replace(Claim(run_id=name, name=name, job_id=f"job of {name}", floor=2), **changes)


@dataclass
class SimulatedRun:
    """Does what it is told, a while later."""

    claim: Claim
    held: Counter[Place] = field(default_factory=Counter)
    leaving: Counter[Place] = field(default_factory=Counter)
    num_training: int = 0
    allowance: Allowance = field(default_factory=lambda: Allowance(slots={}, begins=False))

    def claim_now(self, world: World) -> None:
        lendable, kept = Counter[Place](), self.num_training
        for place, count in self.held.items():
            stays = min(kept, count)
            kept -= stays
            lendable[place] = count - stays
        claim = replace(
            self.claim,
            holding=HeldSlots(held=dict(self.held), lendable=dict(lendable), leaving=dict(self.leaving)),
            allowed=self.allowance.slots,
        )
        self.allowance = world.book.answer(claim, world.cluster(), now_s=world.now_s)

    def obey(self, world: World) -> None:
        """Begin to empty what is asked back, and take what is allowed."""
        if not self.allowance.begins and not self.held:
            return
        for place, count in self.allowance.slots.items():
            self.leaving[place] = max(self.leaving[place], self.held[place] - count)
            if count > self.held[place]:
                world.take(self, place, count - self.held[place])

    def free(self) -> None:
        """What was being emptied is empty."""
        self.held -= self.leaving
        self.leaving.clear()


class World:
    """A cluster, its processes, and the broker."""

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self.book = SharingBook()
        self.nodes = dict(nodes)
        self.runs: dict[str, SimulatedRun] = {}
        self.num_strange = 0
        """Slots of the first node that processes of nobody have."""
        self.now_s = 0.0

    def cluster(self) -> Cluster:
        strange = Counter({(next(iter(self.nodes)), TYPE): self.num_strange})
        taken: Counter[Place] = sum((run.held for run in self.runs.values()), strange)
        return Cluster(
            nodes=[a_node(name, count) for name, count in self.nodes.items()],
            free={(name, TYPE): count - taken[name, TYPE] for name, count in self.nodes.items()},
        )

    def take(self, run: SimulatedRun, place: Place, count: int) -> None:
        assert self.cluster().free[place] >= count, f"{run.claim.name} is allowed what others have"
        run.held[place] += count

    def add(self, claim: Claim, num_training: int = 0) -> SimulatedRun:
        self.runs[claim.run_id] = run = SimulatedRun(claim=claim, num_training=num_training)
        return run

    def round(self) -> None:
        """Everybody claims once, and obeys; then all is empty that was to be."""
        self.now_s += 1.0
        for run in self.runs.values():
            run.claim_now(self)
            run.obey(self)
        for run in self.runs.values():
            run.free()

    def settle(self) -> dict[str, int]:
        """What each run has once nothing changes any more."""
        num_quiet = 0
        for _ in range(60):
            before = {run_id: Counter(run.held) for run_id, run in self.runs.items()}
            self.round()
            num_quiet = num_quiet + 1 if before == {run_id: run.held for run_id, run in self.runs.items()} else 0
            if num_quiet == 3:  # one run hears of another's claim a round later
                return {run_id: sum(run.held.values()) for run_id, run in self.runs.items()}
        raise AssertionError("slots go to and fro")


def test_one_run_alone_has_all() -> None:
    world = World({"a": 4, "b": 2})
    world.add(a_claim("alone", useful=0))
    assert world.settle() == {"alone": 6}


def test_a_second_run_gets_its_floor_and_what_its_priority_allows_and_gives_all_back() -> None:
    world = World({"a": 6})
    first = world.add(a_claim("first"), num_training=3)
    assert world.settle() == {"first": 6}
    second = world.add(a_claim("second", priority=1))
    assert world.settle() == {"first": 3, "second": 3}, "what trains stays"
    assert (first.allowance.num_lent, second.allowance.num_borrowed) == (3, 3)
    assert (first.allowance.num_owed, second.allowance.num_owed) == (0, 0)
    assert first.allowance.neighbours[0].name == "second"
    del world.runs["second"]
    world.book.forget("second")
    assert world.settle() == {"first": 6}
    assert first.allowance.num_lent == 0


def test_slots_are_allowed_only_when_nobody_has_them() -> None:
    """By the books of the broker, and by Ray."""
    world = World({"a": 4})
    first = world.add(a_claim("first"))
    world.settle()
    second = world.add(a_claim("second"))
    second.claim_now(world)
    assert second.allowance.slots == {("a", TYPE): 0}
    assert not second.allowance.begins
    assert second.allowance.obstacle == "its floor (cpu-a × 2) is being freed: first has 4"
    first.claim_now(world)
    assert first.allowance.slots == {("a", TYPE): 2}
    second.claim_now(world)
    assert second.allowance.slots == {("a", TYPE): 0}, "the first has them still"
    cluster = world.cluster()
    first.obey(world)
    first.free()
    first.claim_now(world)
    claim = replace(second.claim, allowed=second.allowance.slots)
    assert world.book.answer(claim, cluster, now_s=0.0).slots == {("a", TYPE): 0}, "Ray has not got them back yet"
    second.claim_now(world)
    assert second.allowance.begins


def test_a_dead_run_gives_back_what_it_had_when_ray_has_it() -> None:
    world = World({"a": 4})
    first = world.add(a_claim("first"))
    world.settle()
    world.add(a_claim("second"))
    world.settle()
    assert world.book.quiet(world.now_s) == ()
    dead = world.runs.pop("second")
    world.now_s += QUIET_S
    first.claim_now(world)
    assert world.book.quiet(world.now_s) == ("job of second",)
    assert world.book.expire(world.now_s, ended_jobs=()) == (), "it is only busy, as far as Ray knows"
    (expired,) = world.book.expire(world.now_s, ended_jobs=("job of second",))
    assert expired.name == "second"
    taken = Cluster(nodes=[a_node("a", 4)], free={("a", TYPE): 0})
    claim = replace(first.claim, holding=HeldSlots(held=first.held), allowed=first.allowance.slots)
    assert world.book.answer(claim, taken, now_s=world.now_s).slots == {("a", TYPE): 2}, "its processes live still"
    assert dead.held
    assert world.settle() == {"first": 4}


def test_who_is_silent_for_long_is_gone_whatever_ray_says() -> None:
    book = SharingBook()
    book.renew(a_claim("stopped"), now_s=0.0)
    assert book.expire(SILENT_S - 1, ended_jobs=()) == ()
    assert len(book.expire(SILENT_S, ended_jobs=())) == 1
    assert book.run_ids == ()


def test_a_broker_that_begins_anew_learns_everything_from_the_claims() -> None:
    world = World({"a": 6})
    world.add(a_claim("first"), num_training=2)
    world.settle()
    world.add(a_claim("second", priority=1))
    before = world.settle()
    world.book = SharingBook()
    assert world.settle() == before


def test_a_floor_that_does_not_fit_is_said_with_who_has_what() -> None:
    world = World({"a": 4})
    world.add(a_claim("first", floor=3))
    world.settle()
    second = world.add(a_claim("second", priority=5))
    world.settle()
    assert second.held == Counter()
    assert second.allowance.obstacle == (
        "its floor is cpu-a × 2, and the floors of others leave less of cpu-a × 4: first cpu-a × 3"
    )


def test_what_strangers_have_is_nobodys_once_they_have_had_it_for_a_while() -> None:
    world = World({"a": 6})
    world.num_strange = 2
    world.add(a_claim("first"))
    world.settle()
    second = world.add(a_claim("second"))
    for _ in range(int(WINDOW_S) + 3):
        world.round()
    assert world.settle() == {"first": 2, "second": 2}
    assert second.allowance.begins
    world.num_strange = 0
    for _ in range(int(WINDOW_S)):
        world.round()
    assert world.settle() == {"first": 3, "second": 3}


def test_slots_of_a_node_that_is_about_to_leave_are_nobodys() -> None:
    book = SharingBook()
    nodes = [a_node("a", 4), a_node("b", 4, draining=True)]
    cluster = Cluster(nodes=nodes, free={("a", TYPE): 4, ("b", TYPE): 4})
    assert book.answer(a_claim("run"), cluster, now_s=0.0).slots == {("a", TYPE): 4}


def test_types_are_divided_each_by_itself() -> None:
    nodes = [Node(id="a", name="a", counts={"H100": 4, "L40S": 6})]
    free = {("a", "H100"): 4, ("a", "L40S"): 6}
    book = SharingBook()
    claim = a_claim("run", counts={"H100": 2, "L40S": 9}, most=4)
    assert book.answer(claim, Cluster(nodes=nodes, free=free), now_s=0.0).slots == {("a", "H100"): 2, ("a", "L40S"): 4}


def test_slots_that_are_free_on_different_nodes_come_together_for_a_gang() -> None:
    world = World({"a": 2, "b": 2})
    small = [world.add(a_claim(name, floor=1, most=1)) for name in ("first", "second")]
    small[0].held = Counter({("a", TYPE): 1})
    small[1].held = Counter({("b", TYPE): 1})
    gang = world.add(a_claim("gang", floor=2, gang_size=2))
    assert world.settle() == {"first": 1, "second": 1, "gang": 2}
    assert gang.allowance.begins
    assert sorted(gang.held.values()) == [2]


def test_what_trains_moves_for_no_gang() -> None:
    world = World({"a": 2, "b": 2})
    for name, node in (("first", "a"), ("second", "b")):
        run = world.add(a_claim(name, floor=1, most=1), num_training=1)
        run.held = Counter({(node, TYPE): 1})
    gang = world.add(a_claim("gang", floor=2, gang_size=2))
    assert world.settle() == {"first": 1, "second": 1, "gang": 0}
    assert gang.allowance.num_owed == 2


def test_slots_are_given_up_where_a_gang_becomes_whole() -> None:
    world = World({"a": 4, "b": 4})
    first = world.add(a_claim("first", gang_size=1))
    world.settle()
    other = world.add(a_claim("other", floor=1, most=1, priority=1))
    world.settle()
    world.add(a_claim("gang", floor=4, gang_size=4, priority=1))
    final = world.settle()
    assert final == {"first": 3, "other": 1, "gang": 4}
    assert set(first.held.values()) == {3}
    assert first.held.keys() & other.held.keys()


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, int], list[tuple[str, int]]]:
    nodes = {name: 2 * draw(st.integers(1, 3)) for name in "abc"[: draw(st.integers(1, 3))]}
    steps = draw(
        st.lists(st.tuples(st.sampled_from(["come", "go", "need", "train", "round"]), st.integers(0, 99)), max_size=25)
    )
    return nodes, steps


@settings(max_examples=200, deadline=None)
@given(histories())
def test_whatever_happens_nobody_is_allowed_what_another_has_and_all_comes_to_rest(
    history: tuple[dict[str, int], list[tuple[str, int]]],
) -> None:
    """``World.take`` asserts the first. Whoever has begun has its floor, and there is no slot that nobody has, unless
    what trains stands in the way of a whole gang."""
    nodes, steps = history
    world, num_come = World(nodes), 0
    for what, number in steps:
        running = list(world.runs.values())
        chosen = running[number % len(running)] if running else None
        if what == "come" and len(running) < 4:
            num_come += 1
            changes = {"priority": number % 3, "floor": 1 + number % 2, "gang_size": 1 + (number % 5 < 2)}
            world.add(a_claim(f"run {num_come}", **changes))
        elif what == "go" and chosen is not None:
            world.book.forget(chosen.claim.run_id)
            del world.runs[chosen.claim.run_id]
        elif what == "need" and chosen is not None:
            chosen.claim = replace(chosen.claim, useful=number % 12 if number % 3 else None)
        elif what == "train" and chosen is not None:
            chosen.num_training = min(number % 6, sum(chosen.held.values()))
        else:
            world.round()
    final = world.settle()
    for run_id, run in world.runs.items():
        if final[run_id]:
            assert final[run_id] >= run.claim.floor // run.claim.gang_size * run.claim.gang_size
    begun = [run for run_id, run in world.runs.items() if final[run_id]]
    one_each = all(run.claim.gang_size == 1 for run in world.runs.values())
    if begun and (one_each or all(run.num_training == 0 for run in world.runs.values())):
        assert sum(final.values()) == sum(nodes.values())


class FakeClient:
    """Answers claims from a list."""

    def __init__(self, *answers: Allowance) -> None:
        self.answers = list(answers)
        self.claims: list[Claim] = []
        self.closed = False

    def claim(self, claim: Claim) -> Allowance:
        self.claims.append(claim)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        self.closed = True


def test_a_run_waits_for_its_floor_and_says_what_it_waits_for_once() -> None:
    waiting = Allowance(slots={}, begins=False, obstacle="its floor is being freed")
    client = FakeClient(waiting, waiting, Allowance(slots={("a", TYPE): 2}))
    shown: list[str] = []
    member = Member(client, a_claim("run"))
    assert member.wait_for_floor(10.0, shown.append, now=lambda: 0.0, wait=lambda: None).slots == {("a", TYPE): 2}
    assert shown == ["its floor is being freed"]
    member.claim(HeldSlots(held={("a", TYPE): 2}), None)
    assert client.claims[-1].allowed == {("a", TYPE): 2}, "it says what it was told"
    member.close()
    assert client.closed


def test_a_floor_that_is_not_free_in_time_is_an_error_with_a_remedy() -> None:
    client = FakeClient(Allowance(slots={}, begins=False, obstacle="first has 4"))
    with pytest.raises(PoolError, match=r"pool\.share\.wait_s=5 s for slots .*: first has 4; ask for less"):
        Member(client, a_claim("run")).wait_for_floor(5.0, lambda _: None, now=iter((0.0, 1.0, 5.0)).__next__)


def test_what_a_run_claims_follows_from_its_pool() -> None:
    groups = (SlotGroupConfig(type="H100", count=4), SlotGroupConfig(type="H100", count=2))
    config = PoolConfig(slots=groups, share=ShareConfig(enabled=True, priority=3, most=5, floors={"H100": 5}))
    claim = claim_of(config, name="run", job_id="01", gang_size=2, num_gangs_needed=2)
    assert (claim.counts, claim.floor, claim.limit("H100"), claim.limit("L40S")) == ({"H100": 6}, 4, 5, 0)
    assert claim.floor_of("H100", 8) == 4, "in whole gangs"
    assert claim.run_id != claim_of(config, name="run", job_id="01", gang_size=2, num_gangs_needed=2).run_id


def test_a_gang_has_no_floor_and_no_share_of_slots_that_make_none() -> None:
    world = World({"a": 3, "b": 3, "c": 1})
    gang = world.add(a_claim("gang", floor=6, gang_size=2))
    world.add(a_claim("one", floor=1))
    assert world.settle() == {"gang": 4, "one": 3}
    assert (gang.allowance.begins, gang.allowance.num_owed) == (True, 0)
