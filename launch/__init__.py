"""Getting a run onto machines: this machine, a Ray cluster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlserve.launch.begin import launch

__all__ = ["launch"]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that a launcher's configuration can be imported without Ray.
    if name != "launch":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("rlserve.launch.begin").launch
