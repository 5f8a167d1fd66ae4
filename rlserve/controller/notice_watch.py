"""Reads the file of notices (``pool.notice_file``) again and again, and hands what is new to the departures."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from rlserve.controller.departures import Departures
from rlserve.controller.gang_book import GangBook
from rlserve.controller.ports import Fleet
from rlserve.pool.notices.base import Notice
from rlserve.pool.notices.file import NamedNotice, NoticeFile, gangs_named

logger = logging.getLogger(__name__)


class NoticeWatch:
    """Watches one file."""

    def __init__(self, book: GangBook, fleet: Fleet, departures: Departures, path: Path, *, interval_s: float) -> None:
        self._book = book
        self._fleet = fleet
        self._departures = departures
        self._path = path
        self._file = NoticeFile(path)
        self._interval_s = interval_s

    def open(self) -> None:
        """Pass over what stands in the file now."""
        self._file.open()

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            for notice in await asyncio.to_thread(self._file.read_new):
                self._announce(notice)
            await asyncio.sleep(self._interval_s)

    def _announce(self, notice: NamedNotice) -> None:
        hosts = {slot_id: self._fleet.info(slot_id).host for slot_id in self._fleet.ready}
        gangs = gangs_named(notice.name, self._book.present, hosts)
        if not gangs:
            logger.warning("%s names %r, which is no slot, gang, node or host of this run", self._path, notice.name)
        self._departures.announce(
            gangs, Notice(reason=f"{self._path.name} names {notice.name}", grace_s=notice.grace_s)
        )
