"""What a user may move by hand, and why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from manager_builders import make_gang

from rlserve.manager.hand_moves import find_obstacle
from rlserve.manager.roles import Role

TRAIN, ROLLOUT = Role.TRAIN, Role.ROLLOUT
POOL = (make_gang("t0", role=TRAIN), make_gang("t1", role=TRAIN), make_gang("r0", role=ROLLOUT))


@pytest.mark.parametrize(
    ("gang_id", "role", "says"),
    [
        ("t0", ROLLOUT, None),
        ("t0", TRAIN, None),
        ("r0", ROLLOUT, None),
        ("r0", TRAIN, "r0 is the last that rolls out, and a run needs one"),
    ],
)
def test_of_a_whole_pool(gang_id: str, role: Role, says: str | None) -> None:
    assert find_obstacle(gang_id, role, POOL, (1, 2)) == says


def test_one_that_leaves_counts_for_no_role_and_gets_none() -> None:
    pool = (POOL[0], replace(POOL[1], leaving=True), POOL[2])
    assert find_obstacle("t0", ROLLOUT, pool, (1, 2)) == "t0 is the last that trains, and a run needs one"
    assert find_obstacle("t1", ROLLOUT, pool, (1, 2)) == "t1 is being emptied and gets no other role"


def test_one_that_is_lost_or_starts_waits() -> None:
    for changed in (replace(POOL[0], role=None), replace(POOL[0], role=None, alive=False)):
        said = find_obstacle("t0", ROLLOUT, (changed, *POOL[1:]), (1, 2))
        assert said == "t0 has lost a worker, or is starting: ask again when it has a role"
    idle = replace(POOL[0], role=None, idle=True)
    assert find_obstacle("t0", ROLLOUT, (idle, *POOL[1:]), (1, 2)) is None


def test_sizes_that_the_trainer_cannot_run_on_are_refused() -> None:
    pool = (*POOL, make_gang("t2", role=TRAIN))
    assert find_obstacle("t0", ROLLOUT, pool, (1, 3)) == "the trainer cannot run on 2 gangs"
