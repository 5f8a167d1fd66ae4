"""The admin listener: what is needed to open it, made and checked before anything is started."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.errors import UserError
from rlserve.serving.config import AccessConfig, AdminConfig
from rlserve.serving.keys import Keys, Role, read_keys

if TYPE_CHECKING:
    from rlserve.serving.admin.key_files import KeyFiles


@dataclass(frozen=True, kw_only=True)
class AdminDoor:
    """A socket that listens, and who is let in."""

    listener: socket.socket
    key_files: KeyFiles
    profile_folder: Path | None = None
    """Of traces; None refuses them."""


def read_admin_keys(config: AdminConfig, others: Keys, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of the admin listener: its own, and of others those with the role.

    Raises:
        UserError: it is to listen, and has none, or they cannot be read.
    """
    places = AccessConfig(keys_file=config.keys_file, keys_variable=config.keys_variable)
    own = read_keys(places, environment, roles=frozenset({Role.ADMIN}))
    keys = own.with_role(Role.ADMIN, others)
    if config.port is not None and len(keys) == 0:
        raise UserError(
            f"admin.port={config.port} needs a key of its own, on every address: set admin.keys_file, or "
            f"{config.keys_variable} in the environment"
        )
    return keys
