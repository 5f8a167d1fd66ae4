"""An operation of a process group is waited for on the host, and no longer than its deadline."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rlserve.distributed.process_groups import finish_on_host


class FakeWork:
    """An operation that is done after some looks at it."""

    def __init__(self, num_looks: float, failure: str = "") -> None:
        self._num_looks = num_looks
        self._failure = failure
        self.events: list[str] = []

    def is_completed(self) -> bool:
        self.events.append("looked")
        return len(self.events) > self._num_looks

    def wait(self) -> None:
        self.events.append("waited")
        if self._failure:
            raise RuntimeError(self._failure)


def test_the_stream_waits_only_for_what_is_done() -> None:
    work = FakeWork(num_looks=2)
    finish_on_host(work, timedelta(seconds=60))
    assert work.events == ["looked", "looked", "looked", "waited"]


def test_a_failure_is_raised() -> None:
    with pytest.raises(RuntimeError, match="connection reset"):
        finish_on_host(FakeWork(num_looks=0, failure="connection reset"), timedelta(seconds=60))


def test_what_is_never_done_is_given_up_at_the_deadline_and_never_waited_for() -> None:
    work = FakeWork(num_looks=float("inf"))
    with pytest.raises(RuntimeError, match=r"not done within 0\.01 s"):
        finish_on_host(work, timedelta(seconds=0.01))
    assert "waited" not in work.events
