"""Where the commands find runs."""

from __future__ import annotations

from pathlib import Path

from rlserve.errors import UserError
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.sweep_record import Sweep, read_sweep

DEFAULT_OUTPUT_DIR = "runs"
"""Folder that runs lie in."""


def open_run(run: str, output_dir: str = DEFAULT_OUTPUT_DIR) -> RunFolder:
    """The folder of a run, given as a folder, or by its name under ``output_dir`` (``latest`` is one).

    Raises:
        UserError: there is none.
    """
    for path in (Path(run), Path(output_dir) / run):
        if RunFolder(path).versions_file.is_file():
            return RunFolder.open(path)
    folders = (path.parent for path in Path(output_dir).glob("*/versions.json"))
    names = ", ".join(sorted(folder.name for folder in folders if not folder.is_symlink())) or "none"
    raise UserError(f"no run {run!r}, neither as a folder nor in {output_dir}/; runs there: {names}")


def find_sweep(name: str, output_dir: str = DEFAULT_OUTPUT_DIR) -> Sweep | None:
    """The sweep of that folder, or of that name under ``output_dir``; None where there is none."""
    sweeps = (read_sweep(path) for path in (Path(name), Path(output_dir) / name))
    return next((sweep for sweep in sweeps if sweep is not None), None)
