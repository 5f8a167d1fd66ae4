"""The commands: one a module, which is imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

COMMANDS: Mapping[str, str] = {
    "launch": "start a run, or take one up again",
    "show": "print what a run's policy was asked and what it answered",
}
"""Name, which is also the module's, and what ``--help`` says. A module has ``run(arguments) -> exit code``."""


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run a command of :data:`COMMANDS` and return the exit code."""
    exit_code: int = import_module(f"rlserve.cli.{name}").run(arguments)
    return exit_code
