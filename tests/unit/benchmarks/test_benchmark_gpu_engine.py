"""The GPU benchmark: its workload, and a run on the CPU with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu_engine import HIGHEST_TOKEN, LONGEST, NUM_REQUESTS, SHORTEST, main, workload


def test_the_workload_is_that_of_nano_vllm() -> None:
    requests = workload(NUM_REQUESTS, SHORTEST, LONGEST, HIGHEST_TOKEN)
    assert len(requests) == 256
    assert sum(len(request.prompt_token_ids) for request in requests) == 142_827
    assert sum(request.sampling.max_tokens for request in requests) == 133_966


def test_a_smoke_run_prints_and_saves_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke", "--rounds", "2", "--kv-cache-gib", "1", "--cache", str(tmp_path), "--json", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out").read_text())
    wanted = sum(request.sampling.max_tokens for request in workload(4, 2, 6, 100))
    assert [round["num_output_tokens"] for round in report["rounds"]] == [wanted, wanted]
    assert report["machine"]["versions"]["torch"]
    assert "tok/s" in capsys.readouterr().out
