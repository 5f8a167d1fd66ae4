"""``rlserve move`` from the command line; what a run does with it is in ``tests/unit/controller``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import begin_run

from rlserve.cli import main, move
from rlserve.tracking.move_requests import GangStatus, MoveAnswer

GANGS = (
    GangStatus(id="H100/0-1", state="train", num_slots=2, type="H100"),
    GangStatus(id="H100/2-3", state="leaving_rollout", num_slots=2, type="H100", leaving="its node is drained"),
    GangStatus(id="H200/0-1", state="rollout", num_slots=2, type="H200", held_s=90.0),
)


@pytest.fixture
def asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of a run, which does everything but what is asked of H100/0-1."""
    begin_run(place / "runs", "here")
    found: list[tuple[Any, ...]] = []

    def ask(folder: Any, *arguments: Any, timeout_s: float) -> MoveAnswer:
        found.append((folder.name, *arguments, timeout_s))
        if arguments[1] == "H100/0-1":
            return MoveAnswer(outcome="refused", message="it is the last", gangs=GANGS)
        return MoveAnswer(outcome="done", message="moved", gangs=GANGS)

    monkeypatch.setattr(move, "ask", ask)
    return found


def test_the_gangs_of_a_run(asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["move", "here"]) == 0
    assert asked == [("here", "show", None, None, 300.0)]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "gang type slots role",
        "H100/0-1 H100 2 train",
        "H100/2-3 H100 2 leaving rollout leaves: its node is drained",
        "H200/0-1 H200 2 rollout moved by hand, held for another 90 s",
    ]


def test_a_move_a_refusal_and_a_release(asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["move", "here", "H200/0-1", "train", "--timeout", "5"]) == 0
    assert capsys.readouterr().out == "moved\n"
    assert main(["move", "here", "H100/0-1", "rollout"]) == 2
    assert "here refused: it is the last" in capsys.readouterr().err
    assert main(["move", "here", "--release"]) == 0
    assert main(["move", "here", "H200/0-1", "--release"]) == 0
    assert [call[1:4] for call in asked] == [
        ("move", "H200/0-1", "train"),
        ("move", "H100/0-1", "rollout"),
        ("release", None, None),
        ("release", "H200/0-1", None),
    ]


@pytest.mark.parametrize("arguments", [["H100/0-1"], ["H100/0-1", "train", "--release"], ["H100/0-1", "king"]])
def test_half_a_wish(asked: list[tuple[Any, ...]], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["move", "here", *arguments])
    assert stop.value.code == 2
    assert "usage: rlserve move" in capsys.readouterr().err
    assert asked == []
