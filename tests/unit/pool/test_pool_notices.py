"""Notices: lines of a file, signals to a process, and what a cloud's probe says."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlserve.errors import PoolError
from rlserve.pool.config import SlotGroupConfig
from rlserve.pool.gangs import Gang, Node, cut_gangs, cut_newcomers
from rlserve.pool.notices.base import Notice
from rlserve.pool.notices.file import NamedNotice, NoticeFile, gangs_named, parse_notices
from rlserve.pool.notices.probes.factory import find_probe
from rlserve.pool.notices.worker import NOTICE_SIGNALS, WorkerNotices
from rlserve.pool.slots import Slot
from rlserve.roofline.accelerators import slot_type


def named(name: str, grace_s: float | None = None) -> NamedNotice:
    return NamedNotice(name=name, grace_s=grace_s)


def gang(*slot_ids: str, node_id: str | None = None) -> Gang:
    slots = tuple(
        Slot(id=slot_id, type=slot_type("cpu"), prefer=None, num_threads=1, node_id=node_id) for slot_id in slot_ids
    )
    return Gang(id="+".join(slot_ids), slots=slots)


def test_lines_of_the_file() -> None:
    text = "cpu/1\n\n# all of the rack\nhost-a 30   # soon\ncpu/2 soon\ncpu/3 1 2\n"
    assert parse_notices(text) == (named("cpu/1"), named("host-a", 30.0))


def test_only_whole_lines_that_were_added_are_read(tmp_path: Path) -> None:
    path = tmp_path / "notices"
    file = NoticeFile(path)
    file.open()
    assert file.read_new() == ()
    path.write_text("cpu/1\ncpu/2 3")
    assert file.read_new() == (named("cpu/1"),)
    path.write_text("cpu/1\ncpu/2 30\n")
    assert file.read_new() == (named("cpu/2", 30.0),)
    assert file.read_new() == ()
    path.write_text("cpu/3\n")
    assert file.read_new() == (named("cpu/3"),), "written anew"
    again = NoticeFile(path)
    again.open()
    assert again.read_new() == (), "of an earlier run"


def test_gangs_are_found_by_slot_gang_node_or_host() -> None:
    gangs = (gang("a", "b", node_id="node 1"), gang("c", "d", node_id="node 2"))
    hosts = {"a": "here", "b": "here", "c": "there", "d": "there"}
    for name, found in (("b", 0), ("c+d", 1), ("node 1", 0), ("there", 1)):
        assert gangs_named(name, gangs, hosts) == (gangs[found],)
    assert gangs_named("nowhere", gangs, hosts) == ()


@pytest.fixture
def notices() -> Iterator[WorkerNotices]:
    before = {number: signal.getsignal(number) for number in NOTICE_SIGNALS}
    yield WorkerNotices()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NOTICE_SIGNALS)
def test_a_signal_is_a_notice_and_does_not_end_the_process(notices: WorkerNotices, number: signal.Signals) -> None:
    notices.receive_signals()
    assert notices.newest() is None
    os.kill(os.getpid(), number)
    assert notices.newest() == Notice(reason=f"its process was sent {number.name}")


def test_a_probe_that_fails_is_asked_again_until_it_gives_notice(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 100.0
    notices = WorkerNotices(clock=lambda: now_s)
    answers = iter([None, OSError("no answer"), OSError("no answer"), 30.0])

    def probe() -> float | None:
        found = next(answers)
        if isinstance(found, OSError):
            raise found
        return found

    waits: list[None] = []
    notices.poll(probe, wait=lambda: waits.append(None))
    assert len(waits) == 3
    assert caplog.text.count("pool.notice_probe failed, and is asked again: OSError: no answer") == 1
    now_s = 110.0
    newest = notices.newest()
    assert newest is not None
    assert newest.grace_s == 20.0, "what is left of it"
    notices.give(Notice(reason="another"))
    assert notices.newest() == newest, "the first counts"


def test_a_probe_is_found_in_a_file_or_a_module(tmp_path: Path) -> None:
    (tmp_path / "cloud.py").write_text("def spot():\n    return 7.0\nlimit = 3\n")
    assert find_probe(f"{tmp_path}/cloud.py:spot")() == 7.0
    assert find_probe("time:monotonic")() is not None
    for name in (f"{tmp_path}/none.py:spot", f"{tmp_path}/cloud.py:other", f"{tmp_path}/cloud.py:limit", "nowhere:f"):
        with pytest.raises(PoolError, match=r"pool\.notice_probe="):
            find_probe(name)


def test_a_slot_that_left_is_not_taken_again_while_its_node_is_there() -> None:
    groups = [SlotGroupConfig(type="cpu-a", count=2)]
    node = Node(id="a", name="a", counts={"cpu-a": 2})
    first, second = cut_gangs(groups, 1, nodes=[node]).gangs
    assert cut_newcomers("auto", 1, nodes=[node], present=[first], gone=[second]).gangs == ()
    another = Node(id="b", name="b", counts={"cpu-a": 1})
    (newcomer,) = cut_newcomers("auto", 1, nodes=[node, another], present=[first], gone=[second]).gangs
    assert (newcomer.id, newcomer.node_id) == ("cpu-a/2", "b")
