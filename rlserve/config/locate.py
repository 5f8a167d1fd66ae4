"""Where a configuration lies: the file, its root, the files that come with rlserve."""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path

from rlserve.errors import ConfigurationError, Problem

SERVER_FILE = "serve.yaml"
"""The packaged configuration of a server; the others are of runs."""


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A configuration file and the folder that its groups are looked up in."""

    path: Path
    """Absolute."""
    root: Path
    """Absolute: the nearest folder above that is named ``conf``, or else the file's own."""
    shown: str
    """The path as the user knows it, for messages."""

    @property
    def name(self) -> str:
        """What Hydra calls the file: ``rlhf``, ``experiments/long``."""
        return self.path.relative_to(self.root).with_suffix("").as_posix()

    @property
    def search_roots(self) -> tuple[Path, ...]:
        """Folders that groups are looked up in, first hit wins: the file's root, then the packaged one."""
        packaged = packaged_root()
        return (self.root,) if self.root.samefile(packaged) else (self.root, packaged)

    def show(self, path: Path) -> str:
        """A file that takes part, spelled like this one: relative where this one was given relative."""
        if path == self.path:
            return self.shown
        return str(path) if os.path.isabs(self.shown) else os.path.relpath(path)

    def options(self, group: str) -> tuple[str, ...]:
        """The choices of a group, sorted; empty where there is no such group."""
        files = (file for root in self.search_roots for file in (root / group).glob("*.yaml"))
        return tuple(sorted({file.stem for file in files}))


def packaged_root() -> Path:
    """The folder of the configurations that come with rlserve."""
    return Path(str(importlib.resources.files("rlserve"))) / "conf"


def locate(path: str, *, of_server: bool = False) -> ConfigFile:
    """Find a configuration: the path itself, or else among the packaged ones (``conf/rlhf.yaml`` anywhere).

    Args:
        of_server: whether it is to be a server's or a run's, for the list of those that there are.

    Raises:
        ConfigurationError: there is no such file, or it is no ``.yaml`` file.
    """
    given = Path(os.path.abspath(path))
    if given.is_dir():
        raise _refusal(path, "is a folder: name one of its .yaml files")
    if given.exists():
        found, shown = given, path
    else:
        found = packaged_root() / Path(path).as_posix().removeprefix("conf/")
        shown = str(found)
        if os.path.isabs(path) or not found.is_file():
            names = sorted(file.name for file in packaged_root().glob("*.yaml"))
            packaged = ", ".join(f"conf/{name}" for name in names if (name == SERVER_FILE) == of_server)
            raise _refusal(path, f"no such configuration; those that come with rlserve: {packaged}")
    if found.suffix != ".yaml":
        raise _refusal(path, "a configuration's name must end in .yaml")
    root = next((folder for folder in found.parents if folder.name == "conf"), found.parent)
    return ConfigFile(path=found, root=root, shown=shown)


def _refusal(path: str, message: str) -> ConfigurationError:
    return ConfigurationError([Problem("", message)], source=path)
