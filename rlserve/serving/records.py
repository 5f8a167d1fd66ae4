"""What a server writes down of its clients: the accounts of their keys, and the audit log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from rlserve.serving.accounting import Accounts, read_accounts
from rlserve.serving.audit import AuditLog, open_audit_log
from rlserve.serving.config import ServeConfig
from rlserve.serving.write_failures import WriteFailures

_SAVE_INTERVAL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Records:
    """Of one server."""

    accounts: Accounts
    audit: AuditLog | None
    failures: WriteFailures = field(default_factory=WriteFailures)
    """Of both."""

    @property
    def has_text(self) -> bool:
        """Whether the audit log has the bodies of requests."""
        return self.audit is not None and self.audit.has_text

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """The accounts are saved every few seconds while the context is open, and at its end."""
        saving = asyncio.create_task(self._save())
        try:
            yield
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            self.accounts.save()

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_INTERVAL_S)
            if (news := self.accounts.take_news()) is not None:
                await asyncio.to_thread(self.accounts.write, news)


def open_records(config: ServeConfig, open_things: contextlib.ExitStack) -> Records:
    """The records, which ``open_things`` closes.

    Raises:
        UserError: a file cannot be read or written.
    """
    failures = WriteFailures()
    accounts = read_accounts(config.accounting, failures)
    audit = open_things.enter_context(open_audit_log(config.audit, failures))
    return Records(accounts=accounts, audit=audit, failures=failures)
