"""API keys: read once, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlserve.errors import UserError
from rlserve.serving.config import LOOPBACK_HOSTS, AccessConfig

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_MIN_CHARS = 8


class Keys:
    """The keys that are let in.

    Args:
        hashes: SHA-256 of each.
    """

    def __init__(self, hashes: Iterable[bytes]) -> None:
        self._hashes = tuple(dict.fromkeys(hashes))

    def __len__(self) -> int:
        return len(self._hashes)

    def admit(self, key: str) -> bool:
        """Whether a key is one of them. All are compared, so that the time tells nothing."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = [hmac.compare_digest(given, known) for known in self._hashes]
        return any(found)


def read_keys(config: AccessConfig, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of the file and of the environment.

    Raises:
        UserError: the file cannot be read, or a key is too short to be one.
    """
    lines: list[str] = []
    if config.keys_file is not None:
        try:
            lines += Path(config.keys_file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"access.keys_file={config.keys_file} cannot be read: {error}") from error
    lines += environment.get(config.keys_variable, "").split(",")
    written = (line.strip() for line in lines)
    return Keys(_hash(key) for key in written if key and not key.startswith("#"))


def check_access(host: str, config: AccessConfig, keys: Keys) -> None:
    """Raise ``UserError`` where others than this machine could ask without a key."""
    if host not in LOOPBACK_HOSTS and len(keys) == 0 and not config.insecure:
        raise UserError(
            f"host={host} is reached from elsewhere, and there are no API keys: set access.keys_file, or "
            f"{config.keys_variable} in the environment, or access.insecure=true where nobody else can reach it"
        )


def _hash(key: str) -> bytes:
    if match := _HASHED.fullmatch(key):
        return bytes.fromhex(match[1])
    if len(key) < _MIN_CHARS:
        raise UserError(f"an API key has {len(key)} characters: give it at least {_MIN_CHARS}")
    return hashlib.sha256(key.encode()).digest()
