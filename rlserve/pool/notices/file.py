"""A file that names what will be taken away, one a line: ``NAME [SECONDS]``.

A name is that of a slot, a gang, a node or a host; ``#`` begins a comment. Whoever gives notice appends a line. What
stands in the file when a run begins, or goes on, is of the past.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlserve.pool.gangs import Gang

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NamedNotice:
    """One line of the file."""

    name: str
    grace_s: float | None
    """None where the line does not say."""


class NoticeFile:
    """Reads what was added since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = ""

    def open(self) -> None:
        """Pass over what stands there now."""
        self._seen = self._read()

    def read_new(self) -> tuple[NamedNotice, ...]:
        """Whole lines that were added; all of them, where the file was written anew."""
        text = self._read()
        new = text.removeprefix(self._seen) if text.startswith(self._seen) else text
        self._seen = text
        return parse_notices(new)

    def _read(self) -> str:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return text[: text.rfind("\n") + 1]  # the rest is being written


def parse_notices(text: str) -> tuple[NamedNotice, ...]:
    """The notices in some lines; a line that is none is said in the log, and passed over."""
    notices = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, *seconds = words
            grace_s = None
            if seconds:
                (grace_s,) = map(float, seconds)
        except ValueError:
            logger.warning("no notice: %r; must be a name, and the seconds that are left if they are known", line)
            continue
        notices.append(NamedNotice(name=name, grace_s=grace_s))
    return tuple(notices)


def gangs_named(name: str, gangs: Iterable[Gang], hosts: Mapping[str, str]) -> tuple[Gang, ...]:
    """The gangs that lose something with ``name``; ``hosts`` are those of slots whose workers are up."""
    return tuple(
        gang
        for gang in gangs
        if name in (gang.id, gang.node_id, *gang.slot_ids)
        or any(hosts.get(slot_id) == name for slot_id in gang.slot_ids)
    )
