"""``rlserve clean``: what it finds, what it leaves alone, and that it asks."""

from __future__ import annotations

import fcntl
import io
import json
import os
from pathlib import Path

import pytest
from small_runs import finished_run

from rlserve.cli import clean, main
from rlserve.cli.clean import size

MODEL = "addition-model-0123456789abcdef"
LEFT = ("rlserve-fork-left", "rlserve-probe-left", "rlserve-ray-left")


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with something of every kind, and things of others beside them."""
    commands = ["/usr/bin/raylet --temp-dir=" + str(place / "tmp/rlserve-ray-inuse")]
    monkeypatch.setenv("RLSERVE_CACHE", str(place / "cache"))
    monkeypatch.setattr(clean, "kernels_folder", lambda: place / "native")
    monkeypatch.setattr(clean, "temporary_folders", lambda: [place / "tmp"])
    monkeypatch.setattr(clean, "running_commands", lambda: commands)
    for name in (MODEL, "addition-data-0123456789abcdef", "addition-model-fedcba9876543210.partial", "my-own-model"):
        (place / "cache" / name).mkdir(parents=True)
        (place / "cache" / name / "file").write_bytes(b"x" * 1500)
    (place / "native").mkdir()
    (place / "native/kernels-abc.so").write_bytes(b"x" * 10)
    for name in (*LEFT, "rlserve-ray-inuse", "ray", "rlserve-ray-young"):
        folder = place / "tmp" / name
        folder.mkdir(parents=True)
        if not name.endswith("young"):
            os.utime(folder, (1000, 1000))
    return place


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["clean", "--json", *arguments]) == 0
    return [Path(item["path"]).name for item in json.loads(capsys.readouterr().out)]


def test_what_is_ours_and_not_in_use_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys) == [
        "addition-data-0123456789abcdef",
        MODEL,
        "addition-model-fedcba9876543210.partial",
        "kernels-abc.so",
        *LEFT,
    ]
    assert listed(capsys, "kernels") == ["kernels-abc.so"]
    assert (home / "cache" / MODEL).is_dir(), "listing removes nothing"


def test_yes_removes_it_and_nothing_else(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(home / "runs", "r")
    assert main(["clean", "--yes"]) == 0
    assert "removed 7 of 7, 4.5 kB in all" in capsys.readouterr().out
    assert [path.name for path in (home / "cache").iterdir()] == ["my-own-model"]
    assert sorted(path.name for path in (home / "tmp").iterdir()) == ["ray", "rlserve-ray-inuse", "rlserve-ray-young"]
    assert (home / "runs/r/metrics.jsonl").is_file()
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


@pytest.mark.parametrize(("reply", "is_removed"), [("y\n", True), ("YES\n", True), ("n\n", False), ("", False)])
def test_it_asks(
    home: Path, reply: str, is_removed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(reply))
    assert main(["clean", "models"]) == 0
    assert "remove all of it, 4.5 kB? [y/N]" in capsys.readouterr().out
    assert (home / "cache" / MODEL).exists() is not is_removed


def test_with_nobody_to_ask_nothing_is_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["clean"]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert (home / "cache" / MODEL).exists()


def test_what_is_being_made_is_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (home / "cache" / "addition-model-fedcba9876543210.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed(capsys, "models") == ["addition-data-0123456789abcdef", MODEL]


@pytest.mark.parametrize(
    "command",
    [
        "/v/bin/python /v/bin/rlserve launch a.yaml",
        "python -m rlserve launch a.yaml",
        "python /x/rlserve/__main__.py launch a.yaml",
    ],
)
def test_a_run_that_goes_on_keeps_its_model_and_kernels(
    home: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clean, "running_commands", lambda: [command])
    assert listed(capsys) == sorted([*LEFT, "rlserve-ray-inuse"])


def test_an_unknown_kind(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", "runs"]) == 2
    assert "nothing is called 'runs'; there is models, kernels, temporary" in capsys.readouterr().err


def test_sizes_in_words() -> None:
    assert [size(number) for number in (0, 999, 1500, 2_000_000, 3_100_000_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 MB",
        "3.1 GB",
    ]
