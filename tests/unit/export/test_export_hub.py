"""Pushing to a hub: what it is asked for, and what is said where it refuses. The hub is a fake that keeps a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from rlserve.errors import UserError
from rlserve.export import hub
from rlserve.export.hub import push_folder


class FakeHub:
    """Stands in for ``HfApi``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._error = error

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.asked.append((repo_id, options))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        if self._error is not None:
            raise self._error
        self.asked.append(("upload", options))


def test_a_repository_is_made_and_the_folder_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    assert push_folder(Path("m"), "me/m", private=True, message="r1-step_000003") == "https://hub/me/m"
    assert fake.asked == [
        ("me/m", {"private": True, "exist_ok": True}),
        ("upload", {"repo_id": "me/m", "folder_path": Path("m"), "commit_message": "r1-step_000003"}),
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalTokenNotFoundError("no token"), "me/m cannot be pushed to without a token: hf auth login"),
        (HTTPError("connection refused"), "m could not be pushed to me/m: connection refused"),
        (OSError(), "m could not be pushed to me/m: OSError"),
    ],
)
def test_a_hub_that_refuses(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub(error))
    with pytest.raises(UserError, match=said):
        push_folder(Path("m"), "me/m", private=False, message="x")
