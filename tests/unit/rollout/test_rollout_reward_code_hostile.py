"""Programs that want the reward without the work, or harm: neither is to be had."""

from __future__ import annotations

import os
import select
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rollout_code import LIMITS, needs_isolation, run, verdict

from rlserve.rollout.rewards.code.confined import ConfinedProgram, Program
from rlserve.rollout.rewards.code.limits import End

TESTS = ["assert f(2) == 4", "assert f(3) == 6"]
BRIEF = replace(LIMITS, wall_time_s=1.0)


@pytest.fixture(autouse=True)
def _isolated() -> None:
    needs_isolation()


FAKES = {
    "leaves early": "import sys; sys.exit(0)",
    "leaves at once": "import os; os._exit(0)",
    "leaves when called": "import os\ndef f(x): os._exit(0)",
    "exits when called": "import sys\ndef f(x): sys.exit(0)",
    "prints what passes": "import sys\nprint('1' * 100, flush=True)\ndef f(x):\n    print('1' * 100, flush=True)",
    "writes to every descriptor": (
        "import os\nfor n in range(64):\n    try: os.write(n, b'11\\n')\n    except OSError: pass"
    ),
    "replies by itself": (
        "import os\nfor n in range(64):\n"
        '    try: os.write(n, b\'{"value": true, "args": {"list": [null]}}\\n\' * 9)\n    except OSError: pass'
    ),
    "is equal to everything": "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "is a number equal to everything": (
        "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return E(9)"
    ),
    "is a list equal to everything": "class E(list):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "patches assert": "import builtins\nclass E(BaseException): pass\nbuiltins.AssertionError = E\ndef f(x): raise E",
    "patches what replies": (
        "import sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'encode'): m.encode = lambda v: True\n"
        "def f(x): return 5"
    ),
    "raises what a test may expect": "def f(x): raise AssertionError",
    "pretends to be interrupted": "def f(x): raise KeyboardInterrupt",
    "recurses for ever": "def f(x): return f(x)",
    "recurses into the ground": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "replies without end": "def f(x): return 'x' * 10**7",
    "nests without end": "def f(x):\n    v = []\n    for _ in range(10**5): v = [v]\n    return v",
    "is no plain data": "def f(x): return f",
}


@pytest.mark.parametrize("text", FAKES.values(), ids=FAKES.keys())
def test_no_test_passes_that_was_not_met(text: str) -> None:
    assert verdict(text, TESTS).num_passed == 0


PEEK = """
import os
for path in ('.', '/', '/proc/1/fd', '/tmp'):
    try:
        print(os.listdir(path))
    except OSError:
        pass
"""


def test_an_output_cannot_be_known_beforehand() -> None:
    assert verdict(PEEK, [{"input": "", "output": "expected"}]).num_passed == 0
    assert b"expected" not in run(PEEK).output


def test_a_function_named_like_a_builtin_is_not_what_a_test_calls() -> None:
    assert verdict("def abs(x): return 0\ndef f(x): return 0", ["assert abs(f(2) - 4) < 1e-6"]).num_passed == 0


ESCAPES = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)",
    "ignores signals": "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except OSError: pass\ntime.sleep(1000)",
}


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES.keys())
def test_nothing_that_was_started_is_left(text: str) -> None:
    read, write = os.pipe()
    program = Program(files={"answer.py": text}, arguments=["answer.py"], passed_fds=(write,))
    with ConfinedProgram(program, BRIEF, isolated=True) as running:
        running.wait()
    os.close(write)
    ended, _, _ = select.select([read], [], [], 60)
    assert ended, "who has the other end still runs"
    assert os.read(read, 1) == b""
    os.close(read)


FORKS = """
import os, time
number = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
        number += 1
except OSError:
    print(number)
"""


def test_processes_are_counted() -> None:
    assert run(FORKS).output == b"5\n", "with itself there are 6"


@pytest.mark.parametrize(
    "text", ["x = bytearray(1 << 40)", "x = []\nwhile True: x.append(bytearray(1 << 24))", "x = 'x' * (1 << 29)"]
)
def test_memory_is_limited(text: str) -> None:
    outcome = run(text + "\nprint('has it')")
    assert outcome.end is End.EXIT
    assert (outcome.exit_code, outcome.output) != (0, b"has it\n")


FILL = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for name in 'ab':
    try:
        with open(name, 'wb', buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError:
        print('full')
"""


def test_files_are_limited_and_gone() -> None:
    assert run(FILL).output == b"full\nfull\n"
    assert run("import os; print(os.listdir())").output == b"['answer.py']\n"


MEDDLE = """
import os
for place in PLACES:
    for what in (
        lambda: print(open(place).read()),
        lambda: os.remove(place),
        lambda: print(os.listdir(place + '/folder')),
        lambda: print('wrote', open(place + '/made_by_a_program', 'w')),
    ):
        try:
            what()
        except OSError:
            pass
print('done')
"""


def test_other_files_are_neither_seen_nor_changed(tmp_path: Path) -> None:
    secret = tmp_path / "folder" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("s3cret")
    secret.chmod(0o666)
    for folder in (tmp_path, secret.parent):
        folder.chmod(0o777)
    places = [str(secret), str(tmp_path), "/tmp", "/dev/shm", "/usr", "/dev", "/", sys.prefix, sys.base_prefix]
    assert run(MEDDLE.replace("PLACES", repr(places))).output == b"done\n"
    assert secret.read_text() == "s3cret"


def test_the_environment_and_other_processes_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    text = (
        "import os\nprint(os.environ)\n"
        "for path in ('/proc/self/environ', '/proc/1/environ', f'/proc/{os.getppid()}/environ'):\n"
        "    try: print(open(path).read())\n    except OSError: print('none')\nprint(os.getpid() < 9)"
    )
    outcome = run(text)
    assert b"s3cret" not in outcome.output
    assert outcome.output.endswith(b"none\nnone\nnone\nTrue\n")


def test_the_parent_cannot_be_killed() -> None:
    text = (
        "import os\nfor pid in (os.getppid(), 1):\n    try: os.kill(pid, 9)\n    except OSError: pass\nprint('alive')"
    )
    outcome = run(text)
    assert (outcome.end, outcome.exit_code, outcome.output) == (End.EXIT, 0, b"alive\n")


CONNECT = """
import socket
try:
    socket.create_connection(('127.0.0.1', PORT), 5)
except OSError:
    print('none')
"""


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert run(CONNECT.replace("PORT", str(server.getsockname()[1]))).output == b"none\n"


RIGHTS = """
import ctypes, os
libc = ctypes.CDLL(None)
print(libc.unshare(0x10000000), libc.mount(b't', b'.', b'tmpfs', 0, None))
for call in (lambda: os.chroot('.'), lambda: os.setuid(0)):
    try:
        call()
    except OSError:
        print('no')
"""


def test_no_rights_are_won_by_another_namespace() -> None:
    assert run(RIGHTS).output == b"-1 -1\nno\nno\n"
