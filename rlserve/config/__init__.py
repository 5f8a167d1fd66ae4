"""The configuration of a run: YAML composed by Hydra, checked strictly, handed on as a frozen tree.

    file, overrides ──locate, compose──> plain values ──validate──> RunConfig ──checks──> LoadedConfig

Names are resolved on first use, so that importing the tree does not import Hydra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlserve.config.dump import as_plain, to_yaml
    from rlserve.config.loading import LoadedConfig, load
    from rlserve.config.tree import RunConfig

__all__ = ["LoadedConfig", "RunConfig", "as_plain", "load", "to_yaml"]

_HOMES = {"LoadedConfig": "loading", "RunConfig": "tree", "as_plain": "dump", "load": "loading", "to_yaml": "dump"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
