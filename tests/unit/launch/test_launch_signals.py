"""What signals do at each stage, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from rlserve.launch.signals import STOP_SIGNALS

PROGRAM = """
import signal, subprocess, sys, threading
from rlserve.launch.signals import StopRequested, StopSignals, exit_code

signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
child = subprocess.Popen(["sleep", "1000"])
asked = threading.Event()
with StopSignals() as signals:
    try:
        if sys.argv[1] == "training":
            with signals.handed_to(lambda: print("asked", flush=True)):
                print("ready", child.pid, flush=True)
                while True:
                    signal.pause()
        print("ready", child.pid, flush=True)
        signal.pause()
    except StopRequested as stop:
        child.kill()
        print("unwound", flush=True)
        sys.exit(exit_code(stop.number))
"""


def start(stage: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """The program, once it is ready, and its child."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, stage], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    ready, child = program.stdout.readline().split()
    assert ready == "ready"
    return program, psutil.Process(int(child))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_training_any_of_them_unwinds_the_run(number: signal.Signals) -> None:
    program, _ = start("preparation")
    program.send_signal(number)
    output, errors = program.communicate(timeout=60)
    assert (output, errors, program.returncode) == ("unwound\n", "", 128 + number)


def test_in_training_the_first_asks_and_the_second_ends_everything() -> None:
    program, child = start("training")
    program.send_signal(signal.SIGUSR1)
    assert program.stdout is not None
    assert program.stdout.readline() == "asked\n"
    assert child.is_running()
    program.send_signal(signal.SIGHUP)
    output, _ = program.communicate(timeout=60)
    assert (output, program.returncode) == ("", 128 + signal.SIGHUP)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_under_nohup_a_closed_terminal_means_nothing() -> None:
    program, _ = start("nohup")
    program.send_signal(signal.SIGHUP)
    program.send_signal(signal.SIGTERM)
    output, _ = program.communicate(timeout=60)
    assert (output, program.returncode) == ("unwound\n", 128 + signal.SIGTERM)


def test_the_handlers_of_before_are_put_back() -> None:
    program = (
        "import signal\nfrom rlserve.launch.signals import StopSignals, STOP_SIGNALS\n"
        "before = [signal.getsignal(number) for number in STOP_SIGNALS]\n"
        "with StopSignals():\n    assert signal.getsignal(signal.SIGTERM) != before[1]\n"
        "assert [signal.getsignal(number) for number in STOP_SIGNALS] == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_ray_does_not_take_sigterm_away_from_us() -> None:
    """What replaces the handler below Python's level, in another thread, is undone."""
    program = """
import ctypes, signal, threading
from rlserve.launch.signals import terminate_signal_kept
signal.signal(signal.SIGTERM, lambda *_: print("ours", flush=True))
def replace():
    with terminate_signal_kept():
        ctypes.CDLL(None).signal(int(signal.SIGTERM), 0)
thread = threading.Thread(target=replace)
thread.start()
thread.join()
signal.raise_signal(signal.SIGTERM)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("ours\n", 0)
