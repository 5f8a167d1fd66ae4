"""Figures with their bars, as ``--json`` holds them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure and its bar."""

    name: str
    value: float
    bar: float
    at_least: bool = True
    """Else it must not be above the bar."""

    @property
    def met(self) -> bool:
        """Whether it keeps to its bar."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def line(self) -> dict[str, str | float | bool]:
        """Of the list ``checks``."""
        return {"name": self.name, "value": self.value, "bar": self.bar, "met": self.met}


def report(description: str | None, make: Callable[[], Iterable[Check]]) -> int:
    """The whole of a program whose figures are differences: make them, print a line each, and write what ``--json``
    asks for; 1 where one is above its bar."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the checks")
    arguments = parser.parse_args()
    checks = list(make())
    for check in checks:
        print(f"{'ok ' if check.met else 'BAD'}  {check.value:.1e}  {check.name}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"checks": [check.line() for check in checks]}, indent=2) + "\n")
    return 0 if all(check.met for check in checks) else 1
