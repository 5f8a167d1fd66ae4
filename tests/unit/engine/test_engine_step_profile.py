"""Profiles of an engine's steps: which steps they have, and what becomes of their files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from engine_builders import END_S
from engine_fakes import FakeEngine, requests_of

from rlserve.engine import EngineLoop
from rlserve.engine.stats.step_profile import STEP_RANGE, StepProfile, profiled


def steps_in(trace: Path) -> list[str]:
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    return [event["name"] for event in events if event.get("name", "").startswith(STEP_RANGE)]


@pytest.mark.parametrize(("max_steps", "num_seen"), [(3, 3), (100, 5)])
def test_a_profile_has_the_steps_from_its_beginning_to_the_first_end(
    tmp_path: Path, max_steps: int, num_seen: int
) -> None:
    engine: Any = FakeEngine()
    loop = EngineLoop(engine)
    answers = loop.subscribe_answers()
    loop.submit(requests_of("before"), answers)
    assert answers.read(END_S)
    profile = StepProfile(max_steps)
    loop.begin_profile(profile)
    num_read = 0
    loop.submit(requests_of(*"abcde"), answers)
    while num_read < 5:
        num_read += len(answers.read(END_S))
    assert profile.ended.is_set() == (max_steps == 3)
    loop.end_profile()
    loop.end_profile()  # which ends nothing
    assert profile.num_steps == num_seen
    loop.submit(requests_of("after"), answers)
    assert answers.read(END_S)
    path = tmp_path / "steps.json.gz"
    assert profile.write(path) == path.stat().st_size
    assert sorted(set(steps_in(path))) == [f"{STEP_RANGE} {number}" for number in range(num_seen)]
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"
    loop.stop()


def test_a_trace_without_a_folder_is_an_error(tmp_path: Path) -> None:
    profile = StepProfile(1)
    profile.start()
    with profile.step(), profiled("something"):
        pass
    with pytest.raises(OSError, match="no folder"):
        profile.write(tmp_path / "none" / "steps.json.gz")
    profile.write(tmp_path / "steps.json.gz")
    assert steps_in(tmp_path / "steps.json.gz")


def test_a_trace_that_is_cut_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = StepProfile(1)
    profile.start()
    profile.stop()

    def write_half(path: str) -> None:
        Path(path).write_text('{"traceEvents": [')

    monkeypatch.setattr(profile._profile, "export_chrome_trace", write_half)
    with pytest.raises(OSError, match="no room"):
        profile.write(tmp_path / "steps.json.gz")
    assert list(tmp_path.iterdir()) == []
