"""What serving needs beside what rlserve itself does: ``pip install 'rlserve[serve]'``."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDED = ("fastapi", "uvicorn", "httptools", "uvloop", "msgpack", "orjson")


def missing_packages() -> tuple[str, ...]:
    """Those that are not installed."""
    return tuple(name for name in _NEEDED if find_spec(name) is None)
