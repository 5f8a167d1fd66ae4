"""schemathesis sends what the OpenAPI document allows, and what it does not: answers must be as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import SMALL_ENGINE, ServedModel, served

pytestmark = pytest.mark.slow

KEY = "key-of-the-fuzzer"
LEFT_OUT = "positive_data_acceptance"
"""JSON Schema has no words for parameters that need each other, and takes 1.0 for a whole number; this server does
not."""


@pytest.fixture
def keyed_server(word_model: Path) -> Iterator[ServedModel]:
    overrides = ("model.name=words", "engine.max_model_len=256", *SMALL_ENGINE)
    with served(word_model, *overrides, key=KEY) as running:
        yield running


@pytest.mark.client("schemathesis")
def test_schemathesis(keyed_server: ServedModel, run_client: Any) -> None:
    run_client(
        *("run", f"{keyed_server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
        *("--checks", "all", "--exclude-checks", LEFT_OUT, "--max-examples", "50", "--seed", "1"),
        "--continue-on-failure",
    )
    assert len(keyed_server.replica_processes()) == 1
    assert keyed_server.metric("rlserve:lost_replicas_total") == 0
