"""Checks of the server in front of a run's replicas. They look at this machine: packages, keys, templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlserve.config.tree import RunConfig
from rlserve.errors import Problem, UserError
from rlserve.serving.admin.door import read_admin_keys
from rlserve.serving.config import LOOPBACK_HOSTS
from rlserve.serving.keys import check_access, read_keys
from rlserve.serving.packages import missing_packages


def check_server(config: RunConfig) -> Iterator[Problem]:
    """What would keep clients out, told before the run begins."""
    server = config.rollout.server
    if not server.enabled:
        return
    if missing := missing_packages():
        yield Problem("rollout.server.enabled", f"needs {', '.join(missing)}: pip install 'rlserve[serve]'")
    if config.pool.is_paced:
        message = "is not for slots that stand for others (pool.slots of a paced type): clients know real time alone"
        yield Problem("rollout.server.enabled", message)
    if server.chat_template is not None and not Path(server.chat_template).expanduser().is_file():
        yield Problem("rollout.server.chat_template", f"is no file: {server.chat_template}")
    try:
        keys = read_keys(server.access, may_be_short=server.host in LOOPBACK_HOSTS)
        check_access(server.host, server.access, keys)
        read_admin_keys(server.admin, keys)
    except UserError as error:
        yield Problem("rollout.server.access", str(error))
