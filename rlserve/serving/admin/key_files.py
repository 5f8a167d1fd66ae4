"""The keys of both listeners, read anew without a restart: a key is taken over with its successor beside it, then it
leaves the file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from rlserve.errors import UserError
from rlserve.serving.admin.door import read_admin_keys
from rlserve.serving.config import ServeConfig
from rlserve.serving.keys import Keys, check_access, read_keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadKeys:
    """What was found when keys were read anew."""

    num_keys: int
    """Of clients."""
    num_added: int
    num_removed: int
    """Of both listeners."""


class KeyFiles:
    """
    Raises:
        UserError: keys cannot be read, or others than this machine could come in without one.
    """

    def __init__(self, config: ServeConfig, environment: Mapping[str, str] = os.environ) -> None:
        self._config = config
        self._environment = environment
        self.clients, self.operators = self._read()

    def reload(self) -> ReadKeys:
        """Let in who has a key now, and nobody else. Requests under way go on.

        Raises:
            UserError: they cannot be read, or there would be none any more; all is as before.
        """
        clients, operators = self._read()
        if len(self.clients) > 0 and len(clients) == 0:
            raise UserError("there are no API keys any more, which would let in everybody: the old ones are kept")
        changes = [(self.clients, clients), (self.operators, operators)]
        found = ReadKeys(
            num_keys=len(clients),
            num_added=sum(len(new.digests - old.digests) for old, new in changes),
            num_removed=sum(len(old.digests - new.digests) for old, new in changes),
        )
        for old, new in changes:
            old.replace(new)
        logger.info("%d API keys: %d are new, %d are gone", found.num_keys, found.num_added, found.num_removed)
        return found

    def _read(self) -> tuple[Keys, Keys]:
        is_local = self._config.is_local
        clients = read_keys(self._config.access, self._environment, may_be_short=is_local)
        if not is_local:
            check_access(self._config.host, self._config.access, clients)
        return clients, read_admin_keys(self._config.admin, clients, self._environment)
