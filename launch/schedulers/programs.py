"""Running a scheduler's own programs."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from rlserve.errors import UserError

TIMEOUT_S = 60.0
"""Of most programs that ask a scheduler for something."""


def ask(*command: str, timeout_s: float = TIMEOUT_S) -> str:
    """What a program prints.

    Raises:
        UserError: it is not there, does not answer, or fails; its own words are in the message.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on the PATH: run this where the scheduler's programs are") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{shlex.join(command)} did not answer within {timeout_s:.0f} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).removeprefix(f"{command[0]}: ")
        raise UserError(f"{shlex.join(command)} failed: {said}")
    return done.stdout


def pass_on(command: Sequence[str]) -> int:
    """Let a program print to where we print; returns its exit code.

    Raises:
        UserError: it is not there.
    """
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on the PATH: run this where the scheduler's programs are") from error
