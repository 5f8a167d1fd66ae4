"""The log: everything in the file, one line of it on the console, and a full disk said once."""

from __future__ import annotations

import errno
import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from rlserve.json_log import ProcessFields
from rlserve.tracking.logs import log_to
from rlserve.tracking.run_state import last_error

FULL = Path("/dev/full")
logger = logging.getLogger("rlserve.test")


def text_console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text), text


def test_tracebacks_are_for_the_file(tmp_path: Path) -> None:
    console, text = text_console()
    with log_to(tmp_path / "log", console):
        try:
            raise KeyError("colour")
        except KeyError as error:
            logger.warning("it failed", exc_info=error)
    assert text.getvalue() == "WARNING it failed\n"
    assert "Traceback" in (tmp_path / "log").read_text()
    assert "KeyError: 'colour'" in (tmp_path / "log").read_text()


def test_the_file_may_be_json_and_says_how_far_the_process_is(tmp_path: Path) -> None:
    console, text = text_console()
    fields, step = ProcessFields(role="controller"), 3
    fields.live = lambda: {"step": step, "weight_version": None}
    with log_to(tmp_path / "log", console, "json", fields):
        logger.info("one")
        step = 4
        logger.error("two\nlines")
    assert text.getvalue() == "INFO one\nERROR two\nlines\n"
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(each["role"], each["step"], each["message"]) for each in records] == [
        ("controller", 3, "one"),
        ("controller", 4, "two\nlines"),
    ]
    assert "weight_version" not in records[0]
    assert last_error(tmp_path / "log") == "two\nlines"


def test_the_last_error_is_found_in_a_log_of_which_a_line_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('"x"}\n{"level": "ERROR", "message": "that one"}\n{"level": "INFO"}\n{"level": "ERR')
    assert last_error(tmp_path / "log") == "that one"


def test_a_full_disk_is_said_once_and_the_console_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console, text = text_console()
    with log_to(tmp_path / "log", console):
        monkeypatch.setattr(logging.FileHandler, "emit", full_disk)
        logger.info("one")
        logger.info("two")
    assert text.getvalue() == (
        f"WARNING {tmp_path / 'log'} cannot be written and is left as it is: No space left on device\n"
        "INFO one\nINFO two\n"
    )
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_what_a_full_disk_could_not_take_ends_nothing_at_the_close() -> None:
    console, text = text_console()
    with log_to(FULL, console):
        logger.info("one")
    assert text.getvalue() == (
        "WARNING /dev/full cannot be written and is left as it is: No space left on device\nINFO one\n"
    )


def full_disk(self: logging.FileHandler, record: logging.LogRecord) -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        self.handleError(record)
