"""How an environment of the verifiers package is named: ``verifiers:ID``."""

from __future__ import annotations

import re

PREFIX = "verifiers:"
ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
INSTALL = "pip install 'rlserve[verifiers]'"


def is_verifiers(name: str | None) -> bool:
    """Whether ``environment.name`` or ``data.path`` is ``verifiers:ID``."""
    return name is not None and name.startswith(PREFIX)


def environment_id(name: str) -> str:
    """The id by which the package loads it: ``owner/my-game`` or ``my-game``."""
    return name.removeprefix(PREFIX)


def module_of(name: str) -> str:
    """The Python module that the environment of this id is, as the package has it."""
    return environment_id(name).rpartition("/")[2].replace("-", "_")
