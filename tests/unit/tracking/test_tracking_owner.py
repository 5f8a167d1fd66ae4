"""The owner of a run's folder: who is told from whom, who is refused, who is gone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import UserError
from rlserve.tracking.owner import (
    OWNER_FILE,
    SILENT_AFTER_S,
    Owner,
    claim,
    keep_alive,
    lives,
    owned,
    process_start,
    release,
    this_process,
    wait_until_gone,
)

HERE = Owner(host="a", system="a boot-1", process_id=10, started_s=1000.0)
ELSEWHERE = replace(HERE, host="b", system="b boot-7")


def owner_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / OWNER_FILE).read_text())
    return found


@given(st.floats(0, 1e6), st.none() | st.floats(0, 1e6))
def test_a_process_of_this_machine_lives_by_its_start_and_any_other_by_its_age(
    age_s: float, started_s: float | None
) -> None:
    same = started_s is not None and abs(started_s - HERE.started_s) < 2.0
    assert lives(HERE, age_s=age_s, here=replace(HERE, process_id=99), start_of=lambda process_id: started_s) == same
    assert lives(ELSEWHERE, age_s=age_s, here=HERE, start_of=lambda process_id: 1000.0) == (age_s < SILENT_AFTER_S)


def test_processes_as_the_system_knows_them() -> None:
    assert process_start(os.getpid()) == this_process().started_s
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None, "it has ended, though nobody has asked for its exit code yet"
    child.wait()
    assert process_start(child.pid) is None


def test_a_folder_in_use_is_refused_with_host_and_process(tmp_path: Path) -> None:
    us = this_process()
    with owned(tmp_path):
        assert owner_of(tmp_path)["process_id"] == os.getpid()
        with pytest.raises(UserError) as caught:
            claim(tmp_path, replace(us, process_id=us.process_id + 1))
        assert caught.value.exit_code == 2
        assert str(caught.value).startswith(f"{tmp_path} is in use: process {os.getpid()} on {us.host} writes to it")
        assert owner_of(tmp_path)["process_id"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_it_is_let_go_of_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyError), owned(tmp_path):
        raise KeyError
    with owned(tmp_path):
        pass


def test_an_owner_that_is_gone_is_replaced_and_its_age_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = replace(this_process(), started_s=1.0)  # its number is ours by now
    claim(tmp_path, gone)
    os.utime(tmp_path / OWNER_FILE, (1000.0, 1000.0))
    us = this_process()
    claim(tmp_path, us, now=lambda: 1341.0)
    assert owner_of(tmp_path)["started_s"] == us.started_s
    assert (
        f"process {gone.process_id} on {gone.host}, which wrote to this run, is gone; last sign of life 341 s"
        in caplog.text
    )


@pytest.mark.parametrize(("age_s", "is_refused"), [(0.0, True), (SILENT_AFTER_S - 1, True), (SILENT_AFTER_S, False)])
def test_an_owner_elsewhere_is_known_by_its_signs_of_life(tmp_path: Path, age_s: float, is_refused: bool) -> None:
    claim(tmp_path, ELSEWHERE)
    os.utime(tmp_path / OWNER_FILE, (1000.0, 1000.0))
    if is_refused:
        with pytest.raises(
            UserError, match=f"process 10 on b writes to it, its last sign of life is {age_s:.0f} s old"
        ):
            claim(tmp_path, HERE, now=lambda: 1000.0 + age_s)
    else:
        claim(tmp_path, HERE, now=lambda: 1000.0 + age_s)
        assert owner_of(tmp_path)["host"] == "a"


def test_signs_of_life(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    claim(tmp_path, HERE)
    path = tmp_path / OWNER_FILE
    seen: list[bool] = []

    def wait() -> bool:
        seen.append(path.stat().st_mtime > 1000.0)
        os.utime(path, (1000.0, 1000.0))
        return len(seen) == 4

    keep_alive(tmp_path, HERE, wait)
    assert seen[1:] == [True, True, True]
    claim(tmp_path, ELSEWHERE, now=lambda: 2000.0)
    with caplog.at_level(logging.ERROR):
        keep_alive(tmp_path, HERE, lambda: False)
    assert "process 10 on b has taken over" in caplog.text
    assert owner_of(tmp_path)["host"] == "b"
    release(tmp_path, HERE)
    assert owner_of(tmp_path)["host"] == "b", "what is another's is not let go of"


def test_a_sign_that_cannot_be_left_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waits = iter([False, False, True])
    keep_alive(tmp_path / "away", HERE, lambda: next(waits))
    assert caplog.text.count("no sign of life could be left") == 2


def test_what_cannot_be_let_go_of_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    release(tmp_path / "removed", HERE)
    assert caplog.text == ""
    (tmp_path / OWNER_FILE).mkdir()
    release(tmp_path, HERE)
    assert f"{tmp_path} cannot be let go of: Is a directory" in caplog.text


def test_a_damaged_file_is_nobodys(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"host": 1}'):
        (tmp_path / OWNER_FILE).write_text(text)
        claim(tmp_path, HERE)
        assert owner_of(tmp_path)["host"] == "a"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).mkdir()
    with pytest.raises(UserError, match="cannot be written to: Is a directory"):
        claim(tmp_path, HERE)


def test_of_many_claims_in_one_moment_one_wins(tmp_path: Path) -> None:
    claim(tmp_path, ELSEWHERE)
    os.utime(tmp_path / OWNER_FILE, (0.0, 0.0))
    us, start = this_process(), Barrier(8)
    won: list[str] = []
    lost: list[str] = []

    def run(host: str) -> None:
        start.wait()
        try:
            claim(tmp_path, replace(us, host=host))
            won.append(host)
        except UserError:
            lost.append(host)

    threads = [Thread(target=run, args=(f"host-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert owner_of(tmp_path)["host"] == won[0]


def test_an_owner_elsewhere_is_waited_for_until_it_is_silent_for_long(tmp_path: Path) -> None:
    claim(tmp_path, ELSEWHERE)
    path = tmp_path / OWNER_FILE
    waits = 0

    def wait() -> None:
        nonlocal waits
        waits += 1
        given_s = path.stat().st_mtime - SILENT_AFTER_S / 4
        os.utime(path, (given_s, given_s))

    wait_until_gone(tmp_path, wait=wait)
    assert waits == 4
    claim(tmp_path, this_process())


def test_nobody_waits_for_an_owner_that_lives_or_for_none(tmp_path: Path) -> None:
    wait_until_gone(tmp_path, wait=lambda: pytest.fail("waits for nobody"))
    claim(tmp_path, this_process())
    wait_until_gone(tmp_path, wait=lambda: pytest.fail("waits for a process of this machine"))


def test_the_wait_for_an_owner_elsewhere_that_goes_on_ends(tmp_path: Path) -> None:
    claim(tmp_path, ELSEWHERE)
    waits: list[None] = []
    wait_until_gone(tmp_path, wait=lambda: waits.append(None))
    assert SILENT_AFTER_S < len(waits) < 2 * SILENT_AFTER_S
