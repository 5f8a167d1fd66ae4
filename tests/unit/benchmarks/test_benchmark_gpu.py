"""What is measured of a GPU in one command, gone through on the CPU with a tiny model, and how parts are held to their
time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu import Outcome, as_json, as_table, main, measure_all, measure_here, run_command
from gpu_parts.base import Check, Part, Place, Report, read_checks
from gpu_parts.engine_speed import CASES, run_until
from gpu_parts.factory import ENGINE_CASES, PARTS
from gpu_parts.gpu_tests import outcomes, run_tests
from gpu_parts.models import make_engine

FOLDER = Path(str(sys.modules["gpu"].__file__)).parent
ABOUT = {"date": "today", "commit": "abc", "device": {"kind": "cuda", "gpus": ["H100"]}}
NOT_NEEDED = ("ray", "hydra", "omegaconf", "pydantic", "deepspeed", "pytest", "datasets", "pyarrow", "rich", "wandb")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(device="cpu", cache=tmp_path_factory.mktemp("models"), deadline=time.monotonic() + 300)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_goes_through_on_the_cpu_and_says_what_needs_a_gpu(name: str, place: Place) -> None:
    report = Report()
    measure_here(name, place, report)
    assert report.checks
    assert not [check for check in report.checks if check.met is False]
    skipped = [check.name for check in report.checks if check.reason is not None]
    assert bool(skipped) == (name not in ("models", "determinism", "engine-torch"))


def test_a_part_needs_no_package_but_those_named(place: Place, tmp_path: Path) -> None:
    """It runs where the others cannot be imported, and writes what it found."""
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = ["--part", "determinism", "--device", "cpu", "--out", str(tmp_path), "--cache", str(place.cache)]
    command = [sys.executable, "-c", program, str(FOLDER / "gpu.py"), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    found = read_checks(tmp_path / "determinism.found.json")
    assert [check.met for check in found] == [True, None, True]


def test_one_command_writes_json_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--device", "cpu", "--only", "tests"]) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert {"date", "device", "versions", "commit", "wall_s", "parts", "checks"} <= written.keys()
    assert [(part["part"], part["state"]) for part in written["parts"]] == [("tests", "done")]
    assert [(check["value"], check["met"], check["reason"]) for check in written["checks"]] == [
        (None, None, "needs a GPU")
    ]
    assert (tmp_path / "gpu.md").read_text() in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_ended_with_its_children_and_one_that_fails_says_so(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; print('begun', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    state, wall_s = run_command([sys.executable, "-c", parent], tmp_path / "log", 2.0)
    assert (state, wall_s < 30) == ("cut short", True)
    state, _ = run_command([sys.executable, "-c", "raise SystemExit('no memory')"], tmp_path / "log", 60.0)
    assert (state, (tmp_path / "log").read_text()) == ("failed", "no memory\n")
    assert run_command([sys.executable, "-c", ""], tmp_path / "log", 60.0)[0] == "done"


def test_parts_that_there_is_no_time_for_are_left_out_and_everything_is_written_after_each() -> None:
    parts = [Part(name=str(number), measure=lambda place, report: None, least_s=number, most_s=9) for number in (1, 99)]
    written: list[int] = []

    def measure(part: Part, most_s: float) -> Outcome:
        assert most_s <= 9
        return Outcome(part=part.name, state="done", wall_s=1.0)

    found = measure_all(parts, 50.0, measure, lambda outcomes: written.append(len(outcomes)))
    assert [outcome.state for outcome in found] == ["done", "left out"]
    assert found[1].reason == "50 s are left, and it takes at least 99"
    assert written == [1, 2]


def test_the_table_shows_bars_and_what_did_not_end() -> None:
    report = Report()
    report.at_most("seconds", 2.0, 1.5)
    report.at_least("share | all", 0.95, 0.9)
    report.skipped("flash", "not installed")
    ended = [
        Outcome(part="a", state="done", wall_s=1.0, checks=report.checks),
        Outcome(part="b", state="cut short", wall_s=9.0, reason="compiling", checks=[Check(name="n", value=1234567)]),
    ]
    assert as_table(ABOUT, ended).splitlines()[2:] == [
        "| part | what | value | bar | met |",
        "|---|---|---|---|---|",
        "| a | seconds | 2 | at most 1.5 | **no** |",
        "| a | share \\| all | 0.95 | at least 0.9 | yes |",
        "| a | flash | – (not installed) |  |  |",
        "| b | n | 1,234,567 |  |  |",
        "| b | cut short | compiling | | |",
    ]
    assert [check["name"] for check in as_json(ABOUT, ended)["checks"]] == ["seconds", "share | all", "flash", "n"]


def test_findings_are_there_as_they_come(tmp_path: Path) -> None:
    report = Report(path=tmp_path / "found.json")
    assert read_checks(tmp_path / "found.json") == []
    report.figure("one", 1.0)
    report.holds("two", False)
    assert read_checks(tmp_path / "found.json") == report.checks


def test_a_round_that_takes_too_long_tells_how_far_it_came(place: Place) -> None:
    from gpu_engine import workload

    engine, requests = make_engine(place, "596m"), workload(4, 2, 6, 100)
    _, share = run_until(engine, requests, deadline=0.0)
    assert (share, engine.has_work) == (0.0, False)
    assert run_until(engine, requests, deadline=place.deadline)[1] == 1.0


def test_the_tests_of_a_folder_become_checks(tmp_path: Path) -> None:
    tests = tmp_path / "gpu"
    tests.mkdir()
    (tests / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('value', [{'a': 1}], ids=str)\n"
        "def test_right(value): pass\n"
        "def test_wrong(): assert False\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.skipif(True, reason='needs flash-attn')\n"
        "def test_not_here(): pass\n"
    )
    report = Report()
    run_tests(tests, tmp_path, report)
    assert [(check.name, check.met, check.reason) for check in report.checks] == [
        ("tests/gpu: test_right[{'a': 1}]", True, None),
        ("tests/gpu: test_wrong", False, None),
        ("tests/gpu: test_not_here", None, "needs flash-attn"),
        ("tests/gpu: all that ran passed", False, None),
    ]


def test_lines_that_tell_of_no_test_are_passed_over() -> None:
    lines = [
        "collecting ... ",
        "test_a.py::test_b[x y] FAILED        [ 50%]",
        "== 1 failed ==",
        "FAILED test_a.py::test_b",
    ]
    assert list(outcomes(lines)) == [("test_b[x y]", "FAILED", None)]


def test_each_case_of_the_engine_has_options() -> None:
    assert tuple(CASES) == ENGINE_CASES
