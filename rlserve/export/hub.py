"""Push a model folder to the Hugging Face hub, or to one that HF_ENDPOINT names."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # of whichever HTTP client the hub's library has
    LocalTokenNotFoundError,
)

from rlserve.errors import UserError


def push_folder(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Make the repository if there is none, and upload the folder in one commit; returns its address.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise UserError(f"{repository} cannot be pushed to without a token: hf auth login, or set HF_TOKEN") from error
    except (HTTPError, HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} could not be pushed to {repository}: {reason}") from error
    return str(address)
