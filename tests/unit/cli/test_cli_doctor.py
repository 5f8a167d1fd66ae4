"""``rlserve doctor``: what is judged how. The machine itself is looked at once."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from rlserve.cli import doctor, main
from rlserve.cli.doctor import computing, folders
from rlserve.cli.doctor.base import Finding, Level, bad, good, warning
from rlserve.cli.doctor.computing import Seen, judge_gpus, judge_kernels
from rlserve.cli.doctor.folders import examine_folder, examine_ray_folder
from rlserve.cli.doctor.machine import Machine, examine_machine, judge_machine, judge_proxies
from rlserve.cli.doctor.packages import examine_packages, judge_packages

GIB = 1 << 30
MACHINE = Machine(
    system="Linux",
    num_cores=8,
    total_memory_bytes=32 * GIB,
    available_memory_bytes=16 * GIB,
    free_shared_memory_bytes=8 * GIB,
    max_open_files=65536,
)
SEEN = Seen(torch="2.13", cuda="12.8", num_torch=2, num_ray=2, problem=None, kernels="k.so", no_compiler=None)


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {finding.what: finding.level for finding in findings if finding.level is not Level.GOOD}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"num_cores": 1}, {"cores": Level.WARNING}),
        ({"available_memory_bytes": 2 * GIB}, {"memory": Level.WARNING}),
        ({"available_memory_bytes": GIB // 2}, {"memory": Level.BAD}),
        ({"free_shared_memory_bytes": 64 << 20}, {"shared memory": Level.WARNING}),
        ({"free_shared_memory_bytes": None}, {}),
        ({"max_open_files": 1024}, {"open files": Level.WARNING}),
        ({"max_open_files": -1}, {}),
    ],
    ids=str,
)
def test_machines(changes: dict[str, int], expected: dict[str, Level]) -> None:
    assert levels(list(judge_machine(replace(MACHINE, **changes)))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("types", "changes", "level", "part"),
    [
        (["H100", "H100"], {}, Level.GOOD, "2 x H100"),
        ([], {"num_torch": 0, "num_ray": 0}, Level.GOOD, "processes of the CPU"),
        (["H100"], {"cuda": None, "num_torch": 0}, Level.BAD, "install one for CUDA"),
        (["H100", "H100"], {"num_torch": 0}, Level.BAD, "torch sees 0"),
        (["H100", "H100"], {"num_ray": 0}, Level.BAD, "Ray sees 0"),
        (["H100", "H100"], {"problem": "CUDA error: no kernel image\nmore"}, Level.BAD, "no kernel image"),
    ],
)
def test_gpus(types: list[str], changes: dict[str, object], level: Level, part: str) -> None:
    finding = list(judge_gpus(types, replace(SEEN, **changes)))[-1]  # type: ignore[arg-type]
    assert (finding.what, finding.level) == ("GPUs", level)
    assert part in finding.text


def test_kernels_need_a_compiler_only_to_be_quick() -> None:
    assert judge_kernels(SEEN) == good("CPU kernels", "k.so")
    assert "first use" in judge_kernels(replace(SEEN, kernels=None)).text
    assert judge_kernels(replace(SEEN, no_compiler="no such file: c++")).level is Level.WARNING


def test_torch_that_cannot_be_imported_or_hangs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "_PROGRAM", "raise ImportError('libcudart.so.12 is missing')")
    assert computing.ask() == "cannot be imported: ImportError: libcudart.so.12 is missing"

    def hang(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("python", 1.0)

    monkeypatch.setattr(subprocess, "run", hang)
    assert "does not answer" in str(computing.ask())


def test_packages_that_are_missing_or_old_are_named_with_what_they_are_for() -> None:
    requirements = ["torch>=2.11", "ray[default]>=2.54", 'triton>=3.4; extra == "gpu"', 'flash-attn; extra == "flash"']
    versions = {"torch": "2.13.0+cpu", "ray": "2.60", "triton": "3.6"}
    found = {each.what: each for each in judge_packages(requirements, versions.get)}
    assert found["packages"].level is Level.GOOD
    assert "torch 2.13.0+cpu" in found["packages"].text
    assert found["extra gpu"].text.startswith("installed")
    assert "rlserve[flash]" in found["extra flash"].text
    (packages, *_) = judge_packages(requirements, {"torch": "2.1"}.get)
    assert packages.level is Level.BAD
    assert packages.text.startswith("torch is 2.1, not >=2.11, ray is missing")


def test_this_environment_has_what_a_run_needs() -> None:
    assert levels(list(examine_packages())) == {}
    assert Level.BAD not in levels(list(examine_machine())).values()


def test_a_proxy_that_is_asked_for_this_machine_too() -> None:
    assert list(judge_proxies({})) == []
    assert list(judge_proxies({"HTTP_PROXY": "http://p", "no_proxy": "localhost,127.0.0.1"})) == []
    assert levels(list(judge_proxies({"HTTP_PROXY": "http://p"}))) == {"proxy": Level.WARNING}


def test_folders_are_judged_by_room_and_rights(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine_folder("cache", place / "not/there/yet").level is Level.GOOD
    (place / "file").write_text("")
    assert examine_folder("cache", place / "file").level is Level.BAD
    monkeypatch.setattr(folders, "LITTLE_SPACE_BYTES", 1 << 60)
    assert examine_folder("cache", place).level is Level.WARNING
    monkeypatch.setattr(folders, "NO_SPACE_BYTES", 1 << 60)
    assert examine_folder("cache", place).level is Level.BAD


def test_a_temporary_folder_that_is_too_long_for_sockets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = place / ("a" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    finding = examine_ray_folder()
    assert finding.level is Level.WARNING
    assert "in /tmp" in finding.text
    assert list(long.iterdir()) == []


@pytest.mark.parametrize(
    ("findings", "exit_code", "last"),
    [
        ([good("a", "x")], 0, "all is well"),
        ([good("a", "x"), warning("b", "y")], 0, "1 yellow: runs work, with less"),
        ([warning("b", "y"), bad("c", "[z]")], 1, "1 red: runs will not work until that is mended"),
    ],
)
def test_lines_and_exit_code(
    findings: list[Finding],
    exit_code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    assert main(["doctor"]) == exit_code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:-1]] == [[str(each.level), each.what, each.text] for each in findings]
    assert lines[-1] == last
    assert main(["doctor", "--json"]) == exit_code
    assert [each["level"] for each in json.loads(capsys.readouterr().out)] == [str(each.level) for each in findings]
