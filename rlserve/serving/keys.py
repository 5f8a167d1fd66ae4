"""API keys: read once, kept as hashes, compared in constant time; and what the owner of each may do.

A line of a file, or an entry of the environment, is a key and what is said of it, spaces between them::

    a-long-secret
    another-secret name=ci roles=user+metrics priority=5 requests_per_minute=60 tokens_per_minute=20000
    its-successor name=ci

Two keys with one name are one owner's: both are let in until the old one is taken out.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rlserve.errors import UserError
from rlserve.serving.config import LOOPBACK_HOSTS, AccessConfig

logger = logging.getLogger(__name__)

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}", re.ASCII)
_MIN_CHARS = 8
_MAX_KEYS_OF_NAME = 2
"""The old one and the new one."""
_NUMBERS = ("priority", "requests_per_minute", "tokens_per_minute")


class Role(StrEnum):
    """What a key opens."""

    USER = "user"
    """All routes of the API but ``/metrics``."""
    METRICS = "metrics"
    """``/metrics``."""
    ADMIN = "admin"
    """The admin listener, beside its own keys."""


@dataclass(frozen=True, kw_only=True)
class KeyOwner:
    """Who a key belongs to. Never the key itself."""

    name: str
    roles: frozenset[Role] = frozenset({Role.USER, Role.METRICS})
    priority: int | None = None
    """Requests that ask for a more urgent one, a lower number, get this one."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def has_limits(self) -> bool:
        """Whether it may ask for only so much in a minute."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


class Keys:
    """The keys that are let in.

    Args:
        known: SHA-256 of each, or whose it is by its SHA-256.
        has_short: whether one of them can be guessed.
    """

    def __init__(self, known: Iterable[bytes] | Mapping[bytes, KeyOwner], *, has_short: bool = False) -> None:
        self.has_short = has_short
        if not isinstance(known, Mapping):
            known = {digest: KeyOwner(name=f"key-{number}") for number, digest in enumerate(dict.fromkeys(known), 1)}
        self._known = dict(known)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def owners(self) -> tuple[KeyOwner, ...]:
        """Of all keys, each once."""
        return tuple(dict.fromkeys(self._known.values()))

    @property
    def digests(self) -> frozenset[bytes]:
        """SHA-256 of each."""
        return frozenset(self._known)

    @property
    def has_limits(self) -> bool:
        """Whether a key may ask for only so much in a minute."""
        return any(owner.has_limits for owner in self._known.values())

    def replace(self, others: Keys) -> None:
        """Be those of others from now on."""
        self._known, self.has_short = others._known, others.has_short

    def find(self, key: str) -> KeyOwner | None:
        """Whose a key is; None if it is nobody's. It is compared with all, so that the time tells nothing."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = [owner for digest, owner in self._known.items() if hmac.compare_digest(given, digest)]
        return found[0] if found else None

    def with_role(self, role: Role, others: Keys) -> Keys:
        """These, and those of others that have a role."""
        return Keys({**{each: owner for each, owner in others._known.items() if role in owner.roles}, **self._known})


def read_keys(
    config: AccessConfig,
    environment: Mapping[str, str] = os.environ,
    *,
    roles: frozenset[Role] = KeyOwner.roles,
    may_be_short: bool = False,
) -> Keys:
    """The keys of the file and of the environment.

    Args:
        roles: of keys of which none are said.
        may_be_short: whether keys that can be guessed are let in, as where nobody needs one.

    Raises:
        UserError: the file cannot be read, a key is too short, or what is said of one is wrong.
    """
    lines: list[str] = []
    if config.keys_file is not None:
        try:
            lines += Path(config.keys_file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"access.keys_file={config.keys_file} cannot be read: {error}") from error
    lines += environment.get(config.keys_variable, "").split(",")
    written = (line.strip() for line in lines)
    kind = "admin" if roles == {Role.ADMIN} else "key"
    said: dict[str, dict[str, str]] = {}
    names: dict[bytes, str] = {}
    short: set[str] = set()
    for line in written:
        if line and not line.startswith("#"):
            digest, values, is_short = _read_key(line, may_be_short=may_be_short)
            if digest not in names:
                names[digest] = name = values.pop("name", f"{kind}-{len(names) + 1}")
                short |= {name} if is_short else set()
                _merge(said.setdefault(name, {}), values, name)
    counts = Counter(names.values())
    if many := [name for name, number in counts.items() if number > _MAX_KEYS_OF_NAME]:
        raise UserError(f"more than {_MAX_KEYS_OF_NAME} API keys have the name {many[0]!r}: take the oldest out")
    owners = {name: _owner(name, values, roles) for name, values in said.items()}
    for name in sorted(short):
        if Role.ADMIN in owners[name].roles:
            raise UserError(f"the API key {name} has the role admin: give it at least {_MIN_CHARS} characters")
        logger.warning("the API key %s has less than %d characters, and can be guessed", name, _MIN_CHARS)
    return Keys({digest: owners[name] for digest, name in names.items()}, has_short=bool(short))


def check_access(host: str, config: AccessConfig, keys: Keys) -> None:
    """Raise ``UserError`` where others than this machine could ask without a key."""
    if host not in LOOPBACK_HOSTS and len(keys) == 0 and not config.insecure:
        raise UserError(
            f"host={host} is reached from elsewhere, and there are no API keys: set access.keys_file, or "
            f"{config.keys_variable} in the environment, or access.insecure=true where nobody else can reach it"
        )


def _read_key(line: str, *, may_be_short: bool) -> tuple[bytes, dict[str, str], bool]:
    """The hash of a key, what is said of it, and whether it is short; messages never have the key."""
    key, *said = line.split()
    values = dict(each.partition("=")[::2] for each in said)
    if unknown := values.keys() - {"name", "roles", *_NUMBERS}:
        raise UserError(
            f"an API key has {sorted(unknown)[0][:40]!r}: what can be said of it is name, roles, {', '.join(_NUMBERS)}"
        )
    if match := _HASHED.fullmatch(key):
        return bytes.fromhex(match[1]), values, False
    is_short = len(key) < _MIN_CHARS
    if is_short and not may_be_short:
        raise UserError(
            f"an API key has {len(key)} characters: give it at least {_MIN_CHARS} (less can be had where this machine "
            "alone reaches the server)"
        )
    return hashlib.sha256(key.encode()).digest(), values, is_short


def _merge(said: dict[str, str], values: Mapping[str, str], name: str) -> None:
    """Add what is said of the second key of a name to what is said of its first."""
    for what, value in values.items():
        if said.setdefault(what, value) != value:
            raise UserError(f"the two API keys of {name[:80]!r} have different {what}: say it of one of them")


def _owner(name: str, values: Mapping[str, str], roles: frozenset[Role]) -> KeyOwner:
    if _NAME.fullmatch(name) is None:
        raise UserError(
            f"name={name[:80]} of an API key: up to 64 letters, digits and . _ @ -, a letter or digit first"
        )
    if "roles" in values:
        asked = values["roles"].split("+")
        if not set(asked) <= {*Role}:
            raise UserError(f"roles={values['roles'][:80]} of the API key {name}: they are {'+'.join(Role)}")
        roles = frozenset(map(Role, asked))
    numbers = {each: _number(values[each], each, name) for each in _NUMBERS if each in values}
    return KeyOwner(name=name, roles=roles, **numbers)


def _number(text: str, what: str, name: str) -> int:
    least = -(2**31) if what == "priority" else 1
    if re.fullmatch(r"-?[0-9]{1,12}", text) is None or int(text) < least:
        raise UserError(f"{what}={text[:40]} of the API key {name} must be a whole number of at least {least}")
    return int(text)
