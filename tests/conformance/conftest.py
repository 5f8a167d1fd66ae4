"""Clients of others, unmodified and without a network, against a real server: an opt-in suite.

``RLSERVE_CLIENTS`` names a folder with an environment for each client (``CLIENTS/guidellm/bin/guidellm`` and so on;
docs/serving.md says how they are made). A client that is not there is skipped by name.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import SMALL_ENGINE, ServedModel, served
from word_model import write_word_model

_CLIENTS = os.environ.get("RLSERVE_CLIENTS")
_TIMEOUT_S = 900

Run = Callable[..., str]
"""Runs a client with arguments; what it printed."""


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not _CLIENTS:
        pytest.skip("RLSERVE_CLIENTS names no folder with clients")
    return write_word_model(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def server(word_model: Path) -> Iterator[ServedModel]:
    with served(word_model, "model.name=words", *SMALL_ENGINE) as running:
        yield running


@pytest.fixture
def run_client(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Of the client that the test's ``client`` mark names."""
    mark = request.node.get_closest_marker("client")
    assert mark is not None
    name = str(mark.args[0])
    program = Path(_CLIENTS or "") / name / "bin" / name
    if not program.exists():
        pytest.skip(f"{name} is not in RLSERVE_CLIENTS")

    def run(*arguments: str, **environment: str) -> str:
        found = subprocess.run(
            [str(program), *arguments],
            cwd=tmp_path,
            env={**os.environ, "HF_DATASETS_OFFLINE": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
        )
        assert found.returncode == 0, found.stdout[-4000:]
        return found.stdout

    return run
