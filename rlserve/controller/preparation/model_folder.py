"""The folder of the model that a run begins with: made, found or fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download

from rlserve.engine.models import check_supported
from rlserve.errors import ModelError
from rlserve.tasks import is_builtin, resolve_model

_MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What a model and its tokenizer are made of: no pickles and no code."""


def find_model_folder(path: str, on_status: Callable[[str], None]) -> str:
    """The local folder of ``model.path``.

    Raises:
        ModelError: it is no model that can be run, or cannot be had.
    """
    if is_builtin(path):
        on_status("preparing the built-in model (made once, then cached)")
        return str(resolve_model(path))
    if Path(path).is_dir():
        return str(Path(path).absolute())  # workers have a working directory of their own
    on_status(f"fetching {path} from the hub")
    return _fetch(path)


def _fetch(name: str) -> str:
    """The local folder of a model on the hub.

    Raises:
        ModelError: it is not there, cannot be reached, or is no model that the engine runs.
    """
    try:
        folder: str = snapshot_download(name, allow_patterns=list(_MODEL_FILES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} cannot be fetched from the hub: {' '.join(str(error).split())}") from error
    check_supported(folder)
    return folder
