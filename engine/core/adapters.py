"""The adapters that requests can name."""

from __future__ import annotations

from pathlib import Path

from rlserve.engine.adapters.adapter import Adapter
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.errors import UserError


class LoadedAdapters:
    """Owner of the names. What is unloaded stays in memory until the last request that has it has ended."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._by_name: dict[str, Adapter] = {}
        self._num_loaded = 0

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were loaded."""
        return tuple(self._by_name)

    def get(self, name: str) -> Adapter | None:
        """The adapter of that name, if there is one."""
        return self._by_name.get(name)

    def load(self, name: str, folder: Path, *, in_place: bool) -> None:
        """See ``Engine.load_adapter``."""
        if not name or (name in self._by_name and not in_place):
            raise UserError(f"an adapter {name!r} is loaded already: unload it first" if name else "a name is needed")
        adapter = self._runner.load_adapter(self._num_loaded + 1, name, folder)
        self._num_loaded += 1
        self._by_name[name] = adapter

    def unload(self, name: str) -> None:
        """See ``Engine.unload_adapter``."""
        if self._by_name.pop(name, None) is None:
            raise UserError(f"there is no adapter {name!r} to unload; loaded are {list(self._by_name)}")
