"""``sweep.json`` in a folder of its own beside its runs': which runs a sweep consists of.

::

    runs/
      NAME/    sweep.json; job.sbatch where one job of Slurm has all of its runs
      NAME-1/  NAME-2/ …  the folders of its runs
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlserve.errors import DataError, UserError
from rlserve.tracking.run_folder import RunFolder, write_atomically

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SweepMember:
    """One combination of values."""

    number: int
    """From 1 on."""
    overrides: tuple[str, ...]
    """``key=value``, with the run's name."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All runs of a sweep."""

    path: Path
    """Its folder."""
    config: str
    """What all runs share: the file that was named, absolute."""
    members: tuple[SweepMember, ...]

    @property
    def name(self) -> str:
        return self.path.name

    def run_path(self, member: SweepMember) -> Path:
        """Where the folder of a run is, or will be."""
        return self.path.with_name(f"{self.name}-{member.number}")

    def run_folder(self, member: SweepMember) -> RunFolder | None:
        """The folder of a run; None where it has not begun."""
        path = self.run_path(member)
        return RunFolder.open(path) if RunFolder(path).versions_file.is_file() else None

    def begun(self) -> Iterator[RunFolder]:
        """The folders of the runs that have one."""
        folders = (self.run_folder(member) for member in self.members)
        return (folder for folder in folders if folder is not None)


def create_sweep(path: Path, config: str, members: Sequence[SweepMember]) -> Sweep:
    """Make the folder of a sweep.

    Raises:
        UserError: the name is taken, or the folder cannot be made.
    """
    sweep = Sweep(path=path.absolute(), config=config, members=tuple(members))
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{path} exists already: choose another name=…, or delete it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}): choose another output_dir=…") from error
    content = {"config": config, "members": [asdict(member) for member in sweep.members]}
    write_atomically(path / SWEEP_FILE, json.dumps(content, indent=2) + "\n")
    return sweep


def read_sweep(path: Path) -> Sweep | None:
    """The sweep of a folder; None where it is the folder of none.

    Raises:
        DataError: the file is damaged.
    """
    file = path / SWEEP_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        members = tuple(
            SweepMember(number=int(each["number"]), overrides=tuple(each["overrides"])) for each in content["members"]
        )
        return Sweep(path=path.resolve(), config=str(content["config"]), members=members)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is damaged: {error!r}") from error
