"""The comparison of servers: how they are started, what is asked, and what is made of what was seen."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
import serving_peers
from models import SHAPES
from serving_parts.peer_load import CASES, SMOKE, Seen, ask, ratios, seen_of, with_rate
from serving_parts.peer_servers import OURS, VLLM, ServerFailedError, running_peer, server_command
from serving_parts.server import served_folder

SEEN = Seen(
    server=OURS,
    output_tokens_per_s=100.0,
    ttft_s=0.2,
    ttft_p99_s=0.4,
    itl_s=0.02,
    itl_p99_s=0.04,
    tokens_per_chunk=1.0,
    num_failed=0,
    server_cpu_s=2.0,
    client_cpu_share=0.2,
)


def test_both_servers_get_the_same_sizes() -> None:
    ours = server_command(OURS, "python", Path("/model"), 1234)
    theirs = server_command(VLLM, "other-python", Path("/model"), 1234)
    told = dict(word.removeprefix("engine.").split("=") for word in ours if "=" in word)
    options = dict(zip(theirs[3::2], theirs[4::2], strict=True))
    assert (ours[0], theirs[0]) == ("python", "other-python")
    assert told["port"] == options["--port"] == "1234"
    assert told["model.name"] == options["--served-model-name"]
    for our_name, their_name in (
        ("dtype", "--dtype"),
        ("max_model_len", "--max-model-len"),
        ("max_num_sequences", "--max-num-seqs"),
        ("max_num_batched_tokens", "--max-num-batched-tokens"),
        ("kv_cache_bytes", "--kv-cache-memory-bytes"),
    ):
        assert told[our_name] == options[their_name]


def test_only_servers_of_the_same_round_are_compared() -> None:
    ours = [SEEN, replace(SEEN, output_tokens_per_s=50.0), replace(SEEN, output_tokens_per_s=90.0)]
    theirs = [
        replace(SEEN, output_tokens_per_s=80.0, ttft_s=0.1, itl_s=0.03),
        replace(SEEN, output_tokens_per_s=25.0, ttft_s=0.1, itl_s=0.03),
        replace(SEEN, output_tokens_per_s=60.0, ttft_s=0.1, itl_s=0.03),
    ]
    found = ratios(ours, theirs)
    assert found.output_tokens_per_s == pytest.approx(1.5)  # of 1.25, 2 and 1.5
    assert found.ttft_s == pytest.approx(0.5)
    assert found.itl_s == pytest.approx(1.5)


def test_an_open_loop_is_not_judged_by_its_throughput() -> None:
    theirs = replace(SEEN, server=VLLM, ttft_s=0.3)
    seen = {name: {OURS: [SEEN], VLLM: [theirs]} for name in ("poisson", "concurrency 8")}
    checks = {check.name: check for check in serving_peers.checks_of(seen)}
    assert "poisson: output tokens/s over vLLM's" not in checks
    assert not checks["concurrency 8: output tokens/s over vLLM's"].met
    assert checks["poisson: vLLM's median TTFT over ours"].met


def test_only_the_open_loop_takes_another_rate() -> None:
    assert with_rate(CASES["poisson"], 5.0).options()[-1] == "5.0"
    assert with_rate(CASES["poisson"], None) == CASES["poisson"]
    assert with_rate(CASES["concurrency 8"], 5.0) == CASES["concurrency 8"]
    assert "--num-prefixes" in CASES["shared prefix"].options()


def test_what_rlserve_bench_says_is_read() -> None:
    times = {"median": 1.0, "mean": 2.0, "p99": 3.0}
    run = {
        "output_tokens_per_s": 7.0,
        "ttft_s": times,
        "itl_s": times,
        "tokens_per_chunk": 1.5,
        "num_failed": 0,
        "client": {"processor_share": 0.25},
    }
    seen = seen_of(run, VLLM, server_cpu_s=6.0)
    assert (seen.ttft_s, seen.ttft_p99_s, seen.itl_s, seen.itl_p99_s) == (1.0, 3.0, 2.0, 3.0)
    assert (seen.tokens_per_chunk, seen.server_cpu_s, seen.client_cpu_share) == (1.5, 6.0, 0.25)


def test_answers_in_one_piece_each_have_no_gaps() -> None:
    times = {"median": 1.0, "mean": 2.0, "p99": 3.0}
    run = {"output_tokens_per_s": 7.0, "ttft_s": times, "itl_s": None, "tokens_per_chunk": 8.0, "num_failed": 0}
    assert isnan(seen_of({**run, "client": {"processor_share": 0.1}}, OURS, server_cpu_s=1.0).itl_s)


def test_a_server_that_ends_before_it_serves_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailedError, match="nowhere"),
        running_peer(OURS, sys.executable, tmp_path / "nowhere", num_threads=1),
    ):
        pass


def test_our_server_is_asked_and_its_processor_time_told(tmp_path: Path) -> None:
    folder = served_folder(SHAPES["tiny"], tmp_path)
    with running_peer(OURS, sys.executable, folder, num_threads=1) as server:
        (replica,) = server.process.children()
        replica_s = sum(replica.cpu_times()[:2])
        seen = ask(SMOKE, server, folder, seed=1)
        replica_s = sum(replica.cpu_times()[:2]) - replica_s
    assert not replica.is_running()
    assert seen.server == OURS
    assert seen.num_failed == 0
    assert seen.output_tokens_per_s > 0
    assert seen.ttft_s > 0
    assert seen.client_cpu_share > 0
    assert seen.server_cpu_s >= replica_s > 0  # that of the engine's process is among it


def test_without_a_python_that_has_vllm_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLSERVE_VLLM_PYTHON", raising=False)
    with pytest.raises(SystemExit, match="--vllm-python"):
        serving_peers.main(["--case", "smoke"])
