"""The load of paced runs: the same for the same seed, with the spread and the courses that were asked for."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import correlation, fmean, median, stdev
from typing import Any

import pytest

from rlserve.engine.requests.request import SamplingParams
from rlserve.errors import ConfigurationError, DataError
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.rollout.workload.config import WorkloadConfig
from rlserve.rollout.workload.factory import create_workload
from rlserve.rollout.workload.trace import read_trace
from rlserve.rollout.workload.workload import Workload

SAMPLING = SamplingParams(n=4, max_tokens=500, stop=("x",), stop_token_ids=(3,))


def _group(position: int) -> PromptGroup:
    return PromptGroup(
        id=f"0:{position}", position=position, row=position, prompt_text="", prompt_token_ids=(1,), answer=None
    )


def _workload(*, seed: int = 0, **config: Any) -> Workload:
    return create_workload(WorkloadConfig(**config), seed=seed, num_steps=10, tokens_scale=64.0)


def _lengths(workload: Workload, number: int) -> list[tuple[int, ...]]:
    return [workload.sampling(_group(position), SAMPLING).sample_max_tokens for position in range(number)]


def test_lengths_are_log_normal_and_go_together_in_a_group() -> None:
    groups = _lengths(_workload(median_tokens=2048, sigma=0.5), 2000)
    logs = [math.log(length) for group in groups for length in group]
    assert median(length for group in groups for length in group) == pytest.approx(32, rel=0.05)
    assert stdev(logs) == pytest.approx(0.5, rel=0.1)
    pairs = [(math.log(group[0]), math.log(group[1])) for group in groups]
    assert correlation(*zip(*pairs, strict=True)) == pytest.approx(0.5, abs=0.07)


def test_lengths_follow_from_the_seed_and_are_the_engines_to_keep() -> None:
    workload = _workload(median_tokens=30_000, sigma=1.25)
    assert _lengths(workload, 20) == _lengths(_workload(median_tokens=30_000, sigma=1.25), 20)
    assert _lengths(workload, 20) != _lengths(_workload(median_tokens=30_000, sigma=1.25, seed=1), 20)
    sampling = workload.sampling(_group(0), SAMPLING)
    assert (sampling.ignore_eos, sampling.stop, sampling.stop_token_ids) == (True, (), ())
    assert all(1 <= length <= 500 for group in _lengths(workload, 200) for length in group)
    assert any(length == 500 for group in _lengths(workload, 200) for length in group)


def test_a_request_carries_the_lengths_of_its_group() -> None:
    workload = _workload(median_tokens=2000)
    spec = TrainingRequests(sampling=SAMPLING, run_seed=0, workload=workload).of(_group(5), min_version=0)
    assert spec.sampling.sample_max_tokens == workload.sampling(_group(5), SAMPLING).sample_max_tokens


def test_a_trace_is_followed_in_order_and_from_the_start_again(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("64\n\n128\n1e9\n640\n1\n")
    workload = _workload(trace=str(file))
    assert _lengths(workload, 2) == [(1, 2, 500, 10), (1, 1, 2, 500)]
    assert workload.held_out(SAMPLING).max_tokens == 2


@pytest.mark.parametrize(("text", "message"), [("12\nx\n", "line 2 of"), ("", "has no lengths"), ("-1", "line 1 of")])
def test_a_trace_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(DataError, match=message):
        read_trace(tmp_path / "trace")
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path / "missing")


def test_a_line_of_a_trace_may_be_a_group_and_say_whether_it_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "lengths.jsonl"
    file.write_text('{"lengths": [64, 128, 192, 256], "kept": true}\n{"lengths": [640, 640], "kept": false}\n')
    workload = _workload(trace=str(file), kept_share=0.01)
    assert _lengths(workload, 3) == [(1, 2, 3, 4), (10,) * 4, (1, 2, 3, 4)]
    assert [workload.keeps(position, 0.0) for position in range(3)] == [True, False, True]
    assert workload.kept_share(0.0) == 0.5
    assert workload.mean_num_tokens(0.0, max_tokens=5) == pytest.approx((1 + 2 + 3 + 4 + 5 + 5) / 6)


def test_another_seed_takes_a_trace_in_another_order(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("\n".join(str(64 * number) for number in range(1, 41)))
    orders = [sum(_lengths(_workload(trace=str(file), seed=seed), 10), ()) for seed in (0, 1)]
    assert orders[0] == tuple(range(1, 41))
    assert orders[1] != orders[0]
    assert sorted(orders[1]) == list(range(1, 41))


def test_the_mean_length_is_that_of_the_distribution() -> None:
    workload = _workload(median_tokens=2048, sigma=1.0)
    drawn = [length for group in _lengths(workload, 5000) for length in group]
    assert workload.mean_num_tokens(0.0, max_tokens=500) == pytest.approx(fmean(drawn), rel=0.05)


def test_without_lengths_the_model_decides_them() -> None:
    assert _workload().sampling(_group(0), SAMPLING) == SAMPLING
    assert _workload().held_out(SAMPLING) == SAMPLING


def test_the_kept_share_drifts_with_the_steps() -> None:
    workload = _workload(kept_share=0.25, kept_share_end=1.0)
    assert [workload.kept_share(workload.progress(step)) for step in (0, 5, 10)] == pytest.approx([0.25, 0.625, 1.0])
    kept = fmean(workload.keeps(position, 0.5) for position in range(4000))
    assert kept == pytest.approx(0.625, abs=0.03)
    assert all(workload.keeps(position, 1.0) for position in range(100))


def test_the_kept_share_goes_to_and_fro_in_a_square_wave() -> None:
    workload = _workload(kept_share=1.0, kept_share_end=0.4, kept_course="square", num_phases=5)
    assert [workload.kept_share(workload.progress(step)) for step in range(11)] == [
        1,
        1,
        0.4,
        0.4,
        1,
        1,
        0.4,
        0.4,
        1,
        1,
        1,
    ]
    assert _workload(kept_share=0.5).kept_share(0.7) == 0.5


def test_tools_hold_up_their_share_of_the_groups() -> None:
    workload = _workload(tool_share=0.3, tool_wait_s=20.0)
    waits = [workload.group_tool_wait_s(position) for position in range(3000)]
    assert fmean(wait > 0 for wait in waits) == pytest.approx(0.3, abs=0.03)
    assert median(wait for wait in waits if wait) == pytest.approx(20.0, rel=0.1)
    assert not any(_workload().group_tool_wait_s(position) for position in range(100))


def test_two_sources_of_lengths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot stand beside median_tokens"):
        WorkloadConfig(median_tokens=100, trace="file")
