"""The guard of a folder, with real processes: what it ends and removes when its run is killed, and what it lets be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlserve.launch.connect.folder_guard import FolderGuard, writing_processes

_DEADLINE_S = 60.0
_RUN = """
import sys
from pathlib import Path
from rlserve.launch.connect.folder_guard import FolderGuard

guard = FolderGuard(Path(sys.argv[1]))
print(guard._process.pid, flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "logs").mkdir(parents=True)
    (made / "logs/raylet.out").touch()
    return made


def sleeper(redirection: str) -> subprocess.Popen[bytes]:
    """A process in a session of its own, that nothing but the guard would end."""
    process = subprocess.Popen(
        ["sh", "-c", f"exec {redirection}; echo; exec sleep 600"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def processes(folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    log = folder / "logs/raylet.out"
    neighbour = folder.with_name("folder-2")
    neighbour.touch()
    started = {
        "writer": sleeper(f"3>>{log}"),
        "reader": sleeper(f"3<{log}"),
        "neighbour": sleeper(f"3>>{neighbour}"),
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def test_who_writes(folder: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    assert writing_processes(folder) == [processes["writer"].pid]


def test_a_killed_run_leaves_neither_writers_nor_the_folder(
    folder: Path, processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert run.stdout is not None
    guard = psutil.Process(int(run.stdout.readline()))
    run.kill()
    run.communicate()
    processes["writer"].wait(_DEADLINE_S)
    psutil.wait_procs([guard], timeout=_DEADLINE_S)
    assert not guard.is_running()
    assert not folder.exists()
    assert [name for name, process in processes.items() if process.poll() is None] == ["reader", "neighbour"]


def test_a_guard_that_is_closed_touches_nothing(folder: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    guard = FolderGuard(folder)
    guard.close()
    assert guard._process.returncode == 0
    assert (folder / "logs/raylet.out").exists()
    assert all(process.poll() is None for process in processes.values())
