"""schemathesis sends what the OpenAPI document allows, and what it does not: answers must be as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import SMALL_ENGINE, ServedModel, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

KEY = "key-of-the-fuzzer"
LEFT_OUT = "positive_data_acceptance"
"""JSON Schema has no words for parameters that need each other, and takes 1.0 for a whole number; this server does
not."""


@pytest.fixture(params=[False, True], ids=["plain", "filtered"])
def keyed_server(word_model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServedModel]:
    """With a filter it refuses every text that has a letter twice in a row, so many prompts and answers."""
    overrides = ["model.name=words", "engine.max_model_len=256", *SMALL_ENGINE]
    if request.param:
        rules = tmp_path / "deny.txt"
        rules.write_text("".join(f"/{letter}{letter}/\n" for letter in "aeolst0"))
        overrides += ["content.filter=deny_list", f"content.deny_list={rules}"]
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
