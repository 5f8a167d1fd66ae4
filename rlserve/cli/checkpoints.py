"""Where the commands find checkpoints."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlserve.controller.checkpoint import MANIFEST_FILE, by_score, checkpoints
from rlserve.errors import UserError
from rlserve.export.adapters import holds_adapters
from rlserve.tracking.run_folder import RunFolder

CONFIG_FILE = "config.yaml"
"""Of a run, in its folder."""
_POLICY_FOLDER = "policy"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model that a run saved, or that lies there by itself."""

    model_path: Path
    """A Hugging Face folder: of a model, or of adapters."""
    run: Path | None
    """Folder of the run that it comes from."""
    label: str
    """Names what is made of it."""


def find_checkpoint(name: str, output_dir: str, *, best: bool = False) -> Checkpoint:
    """A run (its newest checkpoint, or its best), a step's folder, or a Hugging Face folder; a run also by its name.

    Raises:
        UserError: there is none, or none with a score among which one could be the best.
    """
    given = Path(name).expanduser()
    for path in (given, Path(output_dir) / name):
        if RunFolder(path).versions_file.is_file():
            return _of_step(_sealed_of(RunFolder.open(path), best=best))
    if best:
        raise UserError(f"--best is one of a run's checkpoints, and {name!r} is no run: leave it out, or name a run")
    if _has_model(given / _POLICY_FOLDER):
        return _of_step(given.resolve())
    if _has_model(given):
        resolved = given.resolve()
        is_policy = resolved.name == _POLICY_FOLDER and _run_of(resolved.parent) is not None
        return (
            _of_step(resolved.parent) if is_policy else Checkpoint(model_path=resolved, run=None, label=resolved.name)
        )
    raise UserError(
        f"no checkpoint {name!r}: name a run (its folder, its name in {output_dir}/, or latest), a folder step_… of "
        "one, or a Hugging Face folder with a config.json or an adapter_config.json"
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """What ``find_checkpoint`` takes."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a run (folder, name or latest), a step's folder, a Hugging Face folder",
    )
    parser.add_argument(
        "--best", action="store_true", help="of a run: the checkpoint with the best held-out score, not the newest"
    )


@contextmanager
def whole_model(checkpoint: Checkpoint) -> Iterator[Path]:
    """Folder of the checkpoint's model. Where it has adapters, they are merged, in a folder that is removed again.

    Raises:
        UserError: the model that the adapters belong to is not where it was, or there is no room for the folder.
    """
    if not holds_adapters(checkpoint.model_path):
        yield checkpoint.model_path
        return
    from rlserve.export.model_folder import export_model  # takes seconds

    with tempfile.TemporaryDirectory(prefix="rlserve-") as folder:
        target = Path(folder) / "model"
        yield export_model(checkpoint.model_path, target, dtype="float32", quantisation=None).folder


def newest_sealed(folder: RunFolder) -> Path | None:
    """The newest checkpoint that was written to its end. Its bytes are compared only when it is resumed."""
    sealed = _all_sealed(folder)
    return sealed[-1] if sealed else None


def _sealed_of(folder: RunFolder, *, best: bool) -> Path:
    sealed = _all_sealed(folder)
    if not sealed:
        raise UserError(
            f"{folder.path} holds no checkpoint yet: wait for its first one (checkpoint.every_steps), or name a model"
        )
    if not best:
        return sealed[-1]
    ranked = by_score(sealed)
    if not ranked:
        raise UserError(
            f"no checkpoint of {folder.path} has a held-out score (evaluation.every_steps, or the end of a run): leave "
            "--best out for the newest"
        )
    return ranked[-1]


def _all_sealed(folder: RunFolder) -> list[Path]:
    return [path for path in checkpoints(folder.checkpoints) if (path / MANIFEST_FILE).is_file()]


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or holds_adapters(folder)


def _of_step(step: Path) -> Checkpoint:
    run = _run_of(step)
    name = step.name if run is None else f"{run.name}-{step.name}"
    return Checkpoint(model_path=step / _POLICY_FOLDER, run=run, label=name)


def _run_of(step: Path) -> Path | None:
    """The run that the folder of a step lies in."""
    folder = step.parent.parent
    return folder if (folder / CONFIG_FILE).is_file() and RunFolder(folder).versions_file.is_file() else None
