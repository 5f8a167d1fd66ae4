"""The benchmark from the command line to the JSON, with processes of its own for the peers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from engine_cases import SMOKE, make_requests, num_output_tokens, peer_options
from engine_rounds import PeerFailedError, PeerProcess, missing_reason, worker_environment
from peers.base import WARM_UP_TOKENS, BenchmarkRequest, Peer, PeerOptions, RunOutcome
from peers.factory import REQUIRED_MODULE
from peers.hf import num_padded_steps, one_row_a_sample
from process_usage import group_members, group_usage

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "engine.py"


def request(name: str, max_tokens: int, num_samples: int = 1) -> BenchmarkRequest:
    return BenchmarkRequest(id=name, prompt_token_ids=(1, 2), num_samples=num_samples, max_tokens=max_tokens)


@pytest.mark.slow
def test_smoke_case_against_transformers_and_a_missing_peer(tmp_path: Path) -> None:
    words = ["--case", "smoke", "--peers", "hf,vllm", "--rounds", "1", "--threads", "1"]
    words += [
        "--json",
        str(tmp_path / "new" / "out.json"),
        "--model-cache",
        str(tmp_path),
        "--vllm-python",
        "no-python",
    ]
    result = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    ours, hf, vllm = json.loads((tmp_path / "new" / "out.json").read_text())["cases"][0]["peers"]
    expected = num_output_tokens(make_requests(SMOKE, 1))
    for peer in (ours, hf):
        assert peer["missing"] is None
        assert peer["num_output_tokens"] == [expected]
        assert peer["peak_rss_bytes"] > 2**20
        assert 0 < peer["first_token"]["median_s"] <= peer["wall_s"][0]
    assert hf["ratios_of_ours"] == [ours["tokens_per_s"][0] / hf["tokens_per_s"][0]]
    assert "no-python" in vllm["missing"]
    assert "smoke: vllm not installed" in result.stdout


def test_unknown_peer_is_refused() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT), "--peers", "hf,sglang"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no peer 'sglang'" in result.stderr


def test_a_worker_that_fails_says_why() -> None:
    options = asdict(peer_options(SMOKE, model_folder="unused", num_threads=1))
    message = {"command": "load", "peer": "nobody", "options": options, "warm_up": []}
    environment = worker_environment({}, num_threads=1)
    with PeerProcess(sys.executable, environment) as process, pytest.raises(PeerFailedError, match="no peer 'nobody'"):
        process.ask(message)


def test_a_peer_without_its_package_is_missing() -> None:
    assert missing_reason(REQUIRED_MODULE["vllm"], None) == "not installed: no Python was named for it"
    assert missing_reason(REQUIRED_MODULE["hf"], sys.executable) is None
    assert "No such file" in (missing_reason(REQUIRED_MODULE["hf"], "/no/python") or "")


def test_environment_of_workers_keeps_a_wait_policy_that_the_user_has_set() -> None:
    assert worker_environment({}, 2)["OMP_WAIT_POLICY"] == "passive"
    environment = worker_environment({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "9"}, 2)
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("active", "2")


def test_samples_become_rows_and_padding_counts_the_longest_of_each_batch() -> None:
    rows = one_row_a_sample([request("a", 5, num_samples=2), request("b", 3), request("c", 9)])
    assert [row.id for row in rows] == ["a-0", "a-1", "b-0", "c-0"]
    assert all(row.num_samples == 1 for row in rows)
    assert num_padded_steps(rows, 2) == 5 + 9
    assert num_padded_steps(rows, 4) == 9


class Recorder(Peer):
    """Notes the lengths that it is asked for."""

    def __init__(self, options: PeerOptions) -> None:
        super().__init__(options)
        self.lengths: list[int] = []

    def run(self, requests: Sequence[BenchmarkRequest]) -> RunOutcome:
        self.lengths.extend(item.max_tokens for item in requests)
        return RunOutcome(num_output_tokens=sum(self.lengths), first_token_s=())

    def versions(self) -> dict[str, str]:
        return {}

    def settings(self) -> dict[str, str]:
        return {}


def test_warm_up_runs_every_request_for_a_few_tokens() -> None:
    recorder = Recorder(peer_options(SMOKE, model_folder="unused", num_threads=1))
    recorder.warm_up([request("a", WARM_UP_TOKENS + 50), request("b", 2)])
    assert recorder.lengths == [WARM_UP_TOKENS, 2]


def test_usage_counts_the_children_in_a_process_group() -> None:
    child = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    parent = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        usage = group_usage(process.pid)
        assert len(group_members(process.pid)) == 2
        process.communicate("\n")
    assert usage.cpu_s >= 0.25
    assert usage.peak_rss_bytes > 2**20
    assert group_members(process.pid) == []
