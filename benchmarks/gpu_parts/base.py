"""What a part is given and what it reports. Needs the standard library only.

A part runs in its own process with a time limit. It reports each finding as it comes, so that nothing found is lost
if it is cut short.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Value = float | int | bool | str | None
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding. ``met`` is None where there is no bar, or where nothing was measured."""

    name: str
    value: Value
    bar: str | None = None
    met: bool | None = None
    reason: str | None = None
    """Why nothing was measured."""


@dataclass(kw_only=True)
class Report:
    """The checks of one part, written to ``path`` whenever one is added; None keeps them in memory."""

    path: Path | None = None
    checks: list[Check] = field(default_factory=list)

    def figure(self, name: str, value: Value) -> None:
        """Something measured that has no bar."""
        self._add(Check(name=name, value=value))

    def at_most(self, name: str, value: float, bar: float) -> None:
        """Something measured that must not be above ``bar``."""
        self._add(Check(name=name, value=value, bar=f"at most {bar:g}", met=value <= bar))

    def at_least(self, name: str, value: float, bar: float) -> None:
        """Something measured that must not be below ``bar``."""
        self._add(Check(name=name, value=value, bar=f"at least {bar:g}", met=value >= bar))

    def holds(self, name: str, value: bool) -> None:
        """Something that must be true."""
        self._add(Check(name=name, value=value, bar="true", met=value))

    def skipped(self, name: str, reason: str) -> None:
        """Something that cannot be measured here."""
        self._add(Check(name=name, value=None, reason=reason))

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        if self.path is not None:
            unfinished = self.path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps([asdict(check) for check in self.checks]), encoding="utf-8")
            unfinished.rename(self.path)


def read_checks(path: Path) -> list[Check]:
    """What a part has reported so far."""
    return [Check(**check) for check in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part measures, and until when."""

    device: Device
    cache: Path
    """Folder that models are made in, and kept."""
    deadline: float
    """Of ``time.monotonic()``."""

    @property
    def on_gpu(self) -> bool:
        """Whether this is a real measurement; on a CPU everything is tiny and only exercises the harness."""
        return self.device == "cuda"

    @property
    def rest_s(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something to measure."""

    name: str
    measure: Callable[[Place, Report], None]
    least_s: float
    """It is not started with less time left than this."""
    most_s: float
    """It is killed after this."""
