"""A node of a scheduler's job: what it begins beside Ray, and what is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rlserve.launch.ray_node import forks_workers

_DEADLINE_S = 60
_NODE = """
import os, sys
from unittest import mock
from rlserve.launch import ray_node

RAY = "import sys; print(sys.argv[1:], flush=True); sys.stdin.read()"

def become(program, arguments):
    os.execve(program, [program, "-c", RAY, *arguments[3:]], os.environ)

with mock.patch("os.execv", become):
    ray_node.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "forks"),
    [
        (["--num-gpus=0", """--resources={"cpu-a": 2}"""], True),
        (["--head", """--resources={"cpu": 2}"""], True),
        (["--num-gpus=8"], False),
        (["--num-gpus=8", """--resources={"cpu-a": 2}"""], False),
        (["--num-gpus=0"], False),
        (["""--resources={"cpu-a": 2}""", "--labels=a=b"], False),
    ],
)
def test_nodes_with_slots_of_the_processor_fork_their_workers(arguments: list[str], forks: bool) -> None:
    assert forks_workers(arguments) == forks


def test_what_runs_beside_ray_ends_with_it_and_leaves_nothing() -> None:
    node = subprocess.Popen(
        [sys.executable, "-c", _NODE, "--num-gpus=0", """--resources={"cpu-a": 1}"""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert node.stdout is not None
    said = node.stdout.readline()
    label = next(word for word in said.split("'") if word.startswith("--labels="))
    folder = Path("/tmp") / label.rpartition("=")[2].rpartition(".")[0]
    assert (folder / "python").exists()
    others = psutil.Process(node.pid).children(recursive=True)
    assert {word for each in others for word in each.cmdline()} >= {str(folder), str(folder / "socket")}
    node.kill()
    node.communicate()
    _, alive = psutil.wait_procs(others, timeout=_DEADLINE_S)
    assert not alive
    assert not folder.exists()
