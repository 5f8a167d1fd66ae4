"""The folder of a run: what lies where. Everything that a run leaves behind is in here.

::

    runs/
      latest -> NAME          the run started (or resumed) last
      NAME/
        config.yaml           the resolved configuration
        versions.json         of Python, rlserve and what it stands on
        owner.json            the process that writes here, while it does
        rlserve.log           the log
        metrics.jsonl         metrics, one line a step
        decisions.jsonl       what the manager decided, with the numbers behind it
        events.jsonl          slots changing hands, workers started and lost, versions of the weights
        samples.jsonl         the prompt groups of every training step, with their rewards
        answers.jsonl         some of their answers in full, one line an answer (tracking.samples)
        live.json             how it stands right now, while it goes on
        server.json           where clients reach its replicas, while they do (rollout.server)
        checkpoints/
        job.json              the job of a scheduler that the run belongs to (rlserve submit), whose files are in
        job/
        requests/             of users to the running run (rlserve move)
        wandb/  tensorboard/  the sinks' own files
        summary.json          written at the end, as are
        report.png  report.html
        trace.json            by rlserve trace
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import rlserve
from rlserve.errors import UserError

logger = logging.getLogger(__name__)

LATEST = "latest"
PACKAGES = ("torch", "transformers", "ray", "tokenizers", "safetensors", "datasets", "numpy", "wandb")
GIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class RunFolder:
    """Paths inside the folder of one run."""

    path: Path

    @classmethod
    def create(cls, output_dir: Path, name: str) -> RunFolder:
        """Make ``output_dir/name`` with ``versions.json`` in it.

        Raises:
            UserError: the name is taken, or the folder cannot be made.
        """
        path = output_dir / name
        if not _make(path):
            raise UserError(
                f"{path} exists already: choose another name=…, delete it, or continue it with rlserve resume "
                f"{shlex.quote(str(path))}"
            )
        return cls._begin(path)

    @classmethod
    def create_numbered(cls, output_dir: Path, name: str) -> RunFolder:
        """The same as ``create``, under the first of ``name``, ``name-2``, ``name-3``, … that is free.

        Raises:
            UserError: the folder cannot be made.
        """
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        return cls._begin(next(path for path in (output_dir / name for name in names) if _make(path)))

    @classmethod
    def _begin(cls, path: Path) -> RunFolder:
        """Fill a folder that was made just now; where that fails, its name is free again.

        Raises:
            UserError: it cannot be written to.
        """
        folder = cls(path.absolute())
        try:
            folder.checkpoints.mkdir()
            write_atomically(folder.versions_file, json.dumps(collect_versions(), indent=2) + "\n")
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise UserError(
                f"{path} cannot be written to ({error.strerror}): make room there, or choose another output_dir=…"
            ) from error
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was created before; ``path`` may be ``runs/latest``.

        Raises:
            UserError: it is not the folder of a run.
        """
        folder = cls(path.resolve())
        if not folder.versions_file.is_file():
            raise UserError(f"{path} is not the folder of a run: it has no {folder.versions_file.name}")
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions_file(self) -> Path:
        return self.path / "versions.json"

    @property
    def log_file(self) -> Path:
        return self.path / "rlserve.log"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def decisions_file(self) -> Path:
        return self.path / "decisions.jsonl"

    @property
    def prices_file(self) -> Path:
        """What slots cost, as the user said when the run began; not there where no prices were given."""
        return self.path / "prices.yaml"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def answers_file(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def live_file(self) -> Path:
        return self.path / "live.json"

    @property
    def server_file(self) -> Path:
        return self.path / "server.json"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def report_png(self) -> Path:
        return self.path / "report.png"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @property
    def trace_file(self) -> Path:
        return self.path / "trace.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def job(self) -> Path:
        return self.path / "job"

    @property
    def requests(self) -> Path:
        return self.path / "requests"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb_run_id_file(self) -> Path:
        return self.path / "wandb_run_id"

    def write_config(self, yaml_text: str) -> None:
        """Keep the resolved configuration."""
        write_atomically(self.config_file, yaml_text)

    def read_config(self) -> Mapping[str, Any]:
        """The resolved configuration as plain data; empty where there is none."""
        if not self.config_file.exists():
            return {}
        import yaml  # takes longer than a command needs to answer

        text = self.config_file.read_text(encoding="utf-8")
        config = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return config if isinstance(config, dict) else {}

    def make_latest(self) -> None:
        """Let ``latest``, beside the folder, point at it; at no moment is there no ``latest``.

        Where something else has that name, or there are no links, it is left as it is and said.
        """
        latest = self.path.parent / LATEST
        temporary = self.path.parent / f".{LATEST}-{uuid.uuid4().hex}"
        try:
            temporary.symlink_to(self.path.name, target_is_directory=True)
            if latest.exists() and not latest.is_symlink():
                raise FileExistsError(errno.EEXIST, "it is no link of ours")
            temporary.replace(latest)
        except OSError as error:
            logger.warning(
                "%s does not point at this run: %s; name the run where it is asked for", latest, error.strerror
            )
            temporary.unlink(missing_ok=True)

    def wandb_sync_command(self) -> str | None:
        """What uploads the offline runs of this folder to Weights & Biases; None if there are none."""
        offline_runs = sorted(self.path.glob("wandb/offline-run-*"))
        return shlex.join(["wandb", "sync", *map(str, offline_runs)]) if offline_runs else None


def _make(path: Path) -> bool:
    """Make a folder; False where it is there already, made by whomever and however shortly ago.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}): choose another output_dir=… or name=…") from error
    return True


def default_run_name(config_name: str, now: datetime) -> str:
    """Name of a run that the user gave none: the configuration's name and the time."""
    return f"{config_name}-{now:%Y%m%d-%H%M%S}"


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is wholly there or not at all, also after a loss of power.

    Raises:
        OSError: it cannot be written; names the file, which a full disk by itself does not.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def collect_versions() -> dict[str, str | int | None]:
    """Versions of everything that a result may depend on. Reads package metadata, imports nothing."""
    return {
        "rlserve": rlserve.__version__,
        "git_commit": _git_commit(Path(rlserve.__file__).parent),
        "python": platform.python_version(),
        **{name: _package_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


def _package_version(name: str) -> str | None:
    return next((found.version for found in metadata.distributions(name=name)), None)


def _git_commit(package_folder: Path) -> str | None:
    """Commit of the checkout that rlserve runs from, ``-dirty`` if changed; None where it was installed."""
    if "site-packages" in package_folder.parts or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(package_folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    return result.stdout.strip() or None
