"""The data set of an environment of the verifiers package, as files that prompts are read from.

The files lie in the cache, in a folder named after their content: a run that is resumed finds those that it began with,
and an environment whose data have changed gives others.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from rlserve.cache_folder import cache_folder
from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.verifiers.names import module_of

_DEADLINE_S = 1800.0
"""The environment may fetch its data from the hub."""
_NUM_LINES_SHOWN = 10
_EXPORT = "rlserve.rollout.environments.verifiers.export"


@dataclass(frozen=True, kw_only=True)
class VerifiersData:
    """What an environment of the package brings with it."""

    train: Path
    held_out: Path | None
    """None where it has no evaluation set."""
    tools: list[dict[str, Any]]
    """For the chat template."""
    max_turns: int
    """The environment's own limit; 0 where it has none."""


def export_data(config: EnvironmentConfig) -> VerifiersData:
    """Load the environment in a process of its own, and let it write its data.

    Raises:
        EnvironmentFailedError: it cannot be loaded, cannot be run here, or its data cannot be used.
    """
    assert config.name is not None, "there is an environment"
    cache_folder().mkdir(parents=True, exist_ok=True)
    made = Path(mkdtemp(prefix=f"verifiers-{module_of(config.name)}-", suffix=".partial", dir=cache_folder()))
    try:
        _run_export(config, made)
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(made.iterdir()))).hexdigest()[:16]
        folder = cache_folder() / f"verifiers-{module_of(config.name)}-{digest}"
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else the same data are there already
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    held_out = folder / "held_out.jsonl"
    return VerifiersData(
        train=folder / "train.jsonl",
        held_out=held_out if held_out.is_file() else None,
        tools=about["tools"],
        max_turns=about["max_turns"],
    )


def _run_export(config: EnvironmentConfig, folder: Path) -> None:
    command = f"import sys; sys.path[:] = {sys.path!r}; from {_EXPORT} import main; main({str(folder)!r})"
    place = f"environment.name={config.name}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", command],
            input=pickle.dumps(config),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentFailedError(f"{place}: its data were not there after {_DEADLINE_S:g} s") from None
    error = folder / "error.txt"
    if error.is_file():
        raise EnvironmentFailedError(error.read_text(encoding="utf-8"))
    if done.returncode != 0:
        printed = "\n".join(done.stdout.decode(errors="replace").splitlines()[-_NUM_LINES_SHOWN:])
        raise EnvironmentFailedError(f"{place}: while its data were read, its process ended:\n{printed}")
