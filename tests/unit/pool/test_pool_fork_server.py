"""Workers by fork: they are the process that was asked for, and end with the server."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlserve.cli.clean import is_left_behind
from rlserve.pool.fork_server import LABEL, ForkServer, worker_modules, worker_python_of
from rlserve.trainers import LoraConfig, TorchTrainerConfig

SCRIPT = """
import json, os, sys
print(json.dumps([sys.argv, os.environ["COLOUR"], os.getcwd(), os.getppid(), "decimal" in sys.modules, __name__]))
sys.stderr.write("warned")
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer(1, ["decimal"], compile_kernels=False)
    yield server
    server.close()


def start(server: ForkServer, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """As Ray does: through a shell that becomes the client."""
    return subprocess.Popen(
        ["bash", "-c", f"exec {server.worker_python} {script} {' '.join(arguments)}"],
        cwd=script.parent,
        env={"COLOUR": "blue", "PATH": "/bin:/usr/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_worker_has_arguments_environment_folder_streams_and_imports(server: ForkServer, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with start(server, script, "--a", "1") as client:
        output, errors = client.communicate(timeout=60)
    (process,) = [each for each in psutil.Process().children() if "rlserve.pool.fork_server.server" in each.cmdline()]
    expected = [[str(script), "--a", "1"], "blue", str(tmp_path), process.pid, True, "__main__"]
    assert output == str(expected).replace("'", '"').replace("True", "true") + "\n"
    assert errors == "warned"
    assert client.returncode == 0
    # The list of processes says that the socket's folder is in use.
    folder = Path(shlex.split(server.worker_python)[-1]).parent
    assert not is_left_behind(folder, [" ".join(process.cmdline())], now=lambda: 1e12)
    assert is_left_behind(folder, [], now=lambda: 1e12)


def test_the_label_of_a_node_says_what_its_workers_start_with(server: ForkServer, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv[1], 'decimal' in sys.modules)\n")
    python = worker_python_of({LABEL: server.label}, 1)
    assert python is not None
    done = subprocess.run(["bash", "-c", f"exec {python} {script} 'a b'"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "a b True\n"


@pytest.mark.parametrize(
    ("labels", "num_threads"),
    [
        ({}, 1),
        ({LABEL: "rlserve-fork-ab12.1"}, 2),
        ({LABEL: "rlserve-fork-ab12"}, 1),
        ({LABEL: "other-ab12.1"}, 1),
        ({LABEL: "rlserve-fork-..-ab12.1"}, 1),
    ],
)
def test_other_nodes_and_workers_start_with_python(labels: dict[str, str], num_threads: int) -> None:
    assert worker_python_of(labels, num_threads) is None


def test_workers_end_with_the_server(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(1000)\n")
    server = ForkServer(1, ["decimal"], compile_kernels=False)
    with start(server, script) as client:
        assert client.stdout is not None
        worker = psutil.Process(int(client.stdout.readline()))
        server.close()
        psutil.wait_procs([worker], timeout=60)
        assert not worker.is_running()


def test_what_the_forks_started_ends_with_the_server_too(tmp_path: Path) -> None:
    """As a compiler that a fork runs, which knows nothing of us."""
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\nprint(child.pid, flush=True)\nchild.wait()\n"
    )
    server = ForkServer(1, ["decimal"], compile_kernels=False)
    with start(server, script) as client:
        assert client.stdout is not None
        child = psutil.Process(int(client.stdout.readline()))
        server.close()
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_each_worker_has_a_process_group_of_its_own_in_the_session_of_all(server: ForkServer, tmp_path: Path) -> None:
    """Ctrl-C in a terminal does not reach it, what Ray does to one's group does not reach another, and Linux shares
    processors out among threads, not among sessions."""
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(os.getpid(), os.getpgrp(), os.getsid(0))\n")
    with start(server, script) as client:
        process, group, session = map(int, client.communicate(timeout=60)[0].split())
    assert group == process
    assert session == os.getsid(0)


def test_without_a_server_the_client_becomes_the_process(server: ForkServer, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(7)\n")
    server.close()
    with start(server, script) as client:
        assert client.wait(60) == 7


def test_a_script_that_raises_says_so(server: ForkServer, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise KeyError('colour')\n")
    with start(server, script) as client:
        assert "KeyError: 'colour'" in client.communicate(timeout=60)[1]


def test_every_module_of_a_worker_is_there() -> None:
    """A server that cannot import one of them makes no worker at all."""
    modules = worker_modules(TorchTrainerConfig(lora=LoraConfig(rank=1)))
    assert set(modules) - set(worker_modules(TorchTrainerConfig())) == {"peft"}
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
