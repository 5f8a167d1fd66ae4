"""The engine's guide: its program runs, and it leaves nothing out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from test_documentation import ROOT, blocks

from rlserve.engine import Engine, EngineConfig, EngineLoop, FinishReason, SamplingParams

GUIDE = ROOT / "docs/engine.md"
PUBLIC = {
    *(field.name for field in fields(SamplingParams)),
    *(field.name for field in fields(EngineConfig)),
    *(name for part in (Engine, EngineLoop) for name in vars(part) if not name.startswith("_")),
}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the guide's program leaves behind, run in a folder that has the model."""
    folder, threads = tmp_path_factory.mktemp("guide"), torch.get_num_threads()
    command = [sys.executable, str(ROOT / "examples/own_model/make_tiny_model.py"), str(folder / "tiny")]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    found: dict[str, Any] = {}
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec("\n".join(blocks(GUIDE, "python")), found)
        yield found
    torch.set_num_threads(threads)


def test_the_first_requests_are_served(names: dict[str, Any]) -> None:
    assert len(names["texts"]) == 4
    assert names["outputs"].keys() == {"first", "urgent"}
    assert all(output.finished for output in names["outputs"].values())


def test_stops_are_told(names: dict[str, Any]) -> None:
    assert len(names["reasons"]) == 2
    assert {reason for reason, _ in names["reasons"]} <= {FinishReason.STOP, FinishReason.LENGTH}


def test_a_structured_output_has_its_form(names: dict[str, Any]) -> None:
    structured, tokenizer = names["structured"], names["tokenizer"]
    assert structured.finish_reason is FinishReason.STOP
    assert re.fullmatch(r"\d{1,2}\+\d{1,2}", tokenizer.decode(structured.token_ids, skip_special_tokens=True))


def test_details_are_told_as_it_says(names: dict[str, Any]) -> None:
    assert len(names["likeliest"]) == 3
    assert names["of_prompt"][0] is None
    assert names["likeliest_of_prompt"][0] == ()
    assert 0 < names["could_be_drawn"].sum() < len(names["could_be_drawn"])


def test_a_stream_and_a_whole_answer_came_from_one_loop(names: dict[str, Any]) -> None:
    assert len(names["streamed"]) == len(names["whole_answer"].samples[0].token_ids) == 20
    assert (names["version"], names["partials"]) == (0, ())
    assert names["steps"] >= 20


def test_an_aborted_request_went_on(names: dict[str, Any]) -> None:
    (partial,) = names["partial"].samples
    assert partial.finish_reason is FinishReason.ABORT
    assert len(partial.token_ids) == 5
    assert len(names["whole"].token_ids) == 30


def test_the_numbers_are_those_of_the_engine(names: dict[str, Any]) -> None:
    assert names["numbers"]["vllm:generation_tokens"] == len(names["sample"].token_ids) > 0


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_nothing_is_left_out(name: str) -> None:
    assert re.search(rf"\b{name}\b", GUIDE.read_text(encoding="utf-8"))
