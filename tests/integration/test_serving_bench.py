"""``rlserve bench`` against ``rlserve serve``: what one says it did is what the other counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from served import SMALL_ENGINE, TEMPLATE, ServedModel, served

from rlserve.cli import main

KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text(TEMPLATE)
    with served(tiny_model, f"model.chat_template={template}", *SMALL_ENGINE, key=KEY) as running:
        yield running


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY)
    return path


def bench(server: ServedModel, key_file: Path, *options: str) -> dict[str, Any]:
    result = key_file.parent / "result.json"
    arguments = ["bench", server.url, "--api-key-file", str(key_file), "--json", str(result), "--warm-up", "0"]
    assert main([*arguments, *options]) == 0
    (run,) = json.loads(result.read_text())["runs"]
    assert isinstance(run, dict)
    return run


@pytest.mark.parametrize("prompts", [(), ("--token-ids",)], ids=["text", "token ids"])
def test_lengths_are_exact_and_counted_alike_on_both_sides(
    server: ServedModel, key_file: Path, prompts: tuple[str, ...]
) -> None:
    before = [server.metric(f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation")]
    options = ("--input-tokens", "9", "--output-tokens", "11", "--num-requests", "20", "--concurrency", "4")
    run = bench(server, key_file, *options, *prompts)
    assert (run["num_input_tokens"], run["num_output_tokens"]) == (20 * 9, 20 * 11)
    assert run["token_sources"] == {"usage": 20}
    assert run["finish_reasons"] == {"length": 20}
    counted = (20 * 9, 20 * 11)
    server.wait_for(
        lambda: (
            [server.metric(f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation")]
            == [past + number for past, number in zip(before, counted, strict=True)]
        ),
        "the server counted the same tokens",
    )


def test_conversations_find_what_was_said_in_the_cache(server: ServedModel, key_file: Path) -> None:
    options = ("--workload", "conversation", "--turns", "3", "--input-tokens", "20", "--output-tokens", "8")
    run = bench(server, key_file, *options, "--num-requests", "4", "--rate", "50")
    assert (run["num_answered"], run["num_failed"]) == (12, 0)
    assert run["num_cached_tokens"] > 0
    assert all(request["ttft_s"] <= request["latency_s"] for request in run["requests"])
