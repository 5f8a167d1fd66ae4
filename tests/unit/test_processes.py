"""A process that is to end with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from rlserve.processes import end_with_parent

end_with_parent(int(sys.argv[1]))
print("goes on")
"""


def run(parent: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, str(parent)], capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_it_ends_at_once_if_the_other_has_ended_already() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    late = run(ended.pid)
    assert (late.returncode, late.stdout) == (-signal.SIGKILL, "")
    assert run(os.getpid()).stdout == "goes on\n"
