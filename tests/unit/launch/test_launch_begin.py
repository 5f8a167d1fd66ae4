"""How a run that ends before its time is said, and with which exit code."""

from __future__ import annotations

import errno
import signal

import pytest

from rlserve.config import load
from rlserve.errors import PoolError
from rlserve.launch import begin
from rlserve.launch.signals import StopRequested


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(begin, "_launch", fail)
    return begin.launch(load("conf/rlhf.yaml", ["pool=two"]), None)


def test_a_signal_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(monkeypatch, StopRequested(signal.SIGHUP)) == 129
    assert capsys.readouterr().err == "stopped by SIGHUP before training: there is nothing new to save\n"


def test_what_the_machine_lacks_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/runs/a")) == 1
    message = "the run failed: OSError: [Errno 28] No space left on device: '/runs/a'\n"
    assert capsys.readouterr().err == message


def test_our_own_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PoolError, match="no cluster"):
        ends_with(monkeypatch, PoolError("no cluster"))


@pytest.mark.parametrize(
    ("overrides", "expected"), [(["pool=two"], True), (["pool=two", "launch=cluster"], False), ([], True)]
)
def test_workers_are_forked_where_all_are_cpu_processes_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], expected: bool
) -> None:
    monkeypatch.setattr(begin, "ForkServer", lambda num_threads, modules: num_threads)
    assert begin._start_fork_server(load("conf/rlhf.yaml", overrides)) == (1 if expected else None)


def test_unlike_numbers_of_threads_are_not_forked() -> None:
    loaded = load("conf/rlhf.yaml", ["pool.slots=[{type: cpu-a, count: 1, num_threads: 2}, {type: cpu-b, count: 1}]"])
    assert begin._start_fork_server(loaded) is None
