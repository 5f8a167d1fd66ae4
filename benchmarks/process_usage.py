"""Memory and processor time of a process group, as Linux tells them in ``/proc``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Sums over the living processes of a group."""

    cpu_s: float
    """User and system time of all threads since they started."""
    peak_rss_bytes: int
    """The most that each process has held; pages that two share count twice."""


def group_members(group: int) -> list[int]:
    """Ids of the living processes of the group."""
    return [process for process, fields in _stat_fields() if int(fields[2]) == group]


def group_usage(group: int) -> Usage:
    """What the processes of the group have used."""
    ticks, peak_rss_bytes = 0, 0
    for process, fields in _stat_fields():
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
            peak_rss_bytes += _high_water_bytes(process)
    return Usage(cpu_s=ticks / os.sysconf("SC_CLK_TCK"), peak_rss_bytes=peak_rss_bytes)


def held_bytes() -> int:
    """By this process now."""
    return _status_bytes("self", "VmRSS")


def peak_bytes() -> int:
    """The most that this process has held."""
    return _status_bytes("self", "VmHWM")


def _stat_fields() -> list[tuple[int, list[str]]]:
    """Of every living process: its id, and the fields of its ``stat`` after the name: state, parent, group, …"""
    found = []
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if fields[0] != "Z":
            found.append((int(path.parent.name), fields))
    return found


def _high_water_bytes(process: int) -> int:
    try:
        return _status_bytes(str(process), "VmHWM")
    except OSError:  # it ended while we looked
        return 0


def _status_bytes(process: str, field: str) -> int:
    """0 where the process has no memory any more."""
    lines = (_PROC / process / "status").read_text().splitlines()
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith(f"{field}:"))
