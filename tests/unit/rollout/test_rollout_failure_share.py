"""A run is stopped by a share of its last prompt groups, not by how many failed since it began."""

from __future__ import annotations

import pytest

from rlserve.rollout.failure_share import WINDOW, FailureShare


def test_rare_failures_never_stop_a_long_run() -> None:
    share = FailureShare(0.25)
    assert not any(share.note(failed=number % 5 == 0) for number in range(10_000))


@pytest.mark.parametrize(("max_share", "num_allowed"), [(0.0, 0), (0.25, 8), (1 / WINDOW, 1)])
def test_a_broken_reward_stops_the_run_soon(max_share: float, num_allowed: int) -> None:
    share = FailureShare(max_share)
    for _ in range(1000):
        share.note(failed=False)
    assert [share.note(failed=True) for _ in range(num_allowed + 1)] == [False] * num_allowed + [True]


def test_a_share_of_one_never_stops_it() -> None:
    share = FailureShare(1.0)
    assert not any(share.note(failed=True) for _ in range(100))
