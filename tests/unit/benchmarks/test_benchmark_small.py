"""The benchmarks of weight swaps, of contention and of the controller, on tiny sizes, and that of draws."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import contention
import controller
import costs
import new_weights
import numpy as np
import pytest
import sampling
import trainer_memory
import weight_sync

from rlserve.tracking.cost.ledger import CostLedger
from rlserve.tracking.cost.uses import Use


def test_the_time_of_the_ledger_is_a_share_of_a_step_in_which_all_slots_have_done_something() -> None:
    run = costs.MadeUpRun(name="", num_trainers=2, num_replicas=3, step_s=4.0, stretch_s=2.0, num_steps=4)
    assert 0.0 < costs.share_of_step(run) < 1.0
    ledger = CostLedger()
    for event in (*costs.begin(run), *costs.step_events(run, 1)):
        ledger.note(event)
    uses = ledger.statement(run.step_s).by_use
    assert 3600 * uses[Use.TRAINING] == pytest.approx(2 * 0.85 * 4.0)
    assert 3600 * uses[Use.ROLLOUT] == pytest.approx(3 * 0.9 * 0.8 * 2.0 * 2 / 2)


def test_a_sync_is_measured_whole_and_as_what_changed_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--model", "tiny", "--rounds", "1", "--changed", "0.01", "1.0", "--model-cache", str(tmp_path)]
    exit_code = weight_sync.main([*arguments, "--json", str(out)])
    found = json.loads(out.read_text())
    (result,) = found["results"]
    assert result["num_bytes"] > 10_000
    assert [sync["transport"] for sync in result["syncs"]] == ["object_store"] * 3 + ["shared_folder"] * 3
    assert [sync["is_delta"] for sync in result["syncs"]] == [False, True, False] * 2
    few = result["syncs"][1]
    assert few["num_bytes"] * 50 < result["num_bytes"]
    assert few["plain_factor"] == pytest.approx(2 / 6 * 100, rel=0.2)
    assert all(sync["send_s"] > 0 for sync in result["syncs"])
    assert [check["name"] for check in found["checks"]] == [
        "tiny: whole sync of a whole version, in copies",
        "tiny: pause of the engine, s",
        "tiny: times fewer bytes at 1 % changed, plain",
        "tiny: times fewer bytes at 1 % changed, coded",
    ]
    assert exit_code == (0 if all(check["met"] for check in found["checks"]) else 1)
    assert "times fewer bytes" in capsys.readouterr().out


def test_the_syncs_of_a_run_that_lies_there_are_read_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "step": 3,
        "timing_s/step": 2.0,
        "weights/changed_share": 0.01,
        "weights/sent_bytes": 1000,
        "weights/whole_bytes": 150_000,
        "weights/snapshot_s": 0.01,
        "weights/publish_s": 0.1,
        "weights/load_s": 0.03,
    }
    for name in weight_sync.RUNS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("num_steps: 1\n", encoding="utf-8")
        (tmp_path / name / "summary.json").write_text('{"num_steps": 1}', encoding="utf-8")
        lines = [json.dumps(found) for found in ({"step": 0, "eval/score": 0.5}, row)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    assert weight_sync.main(["--real", str(tmp_path), "--json", str(out)]) == 1
    found = json.loads(out.read_text())
    assert [run["steps"][0]["num_bytes"] for run in found["runs"]] == [1000] * 3
    assert {check["name"]: check["met"] for check in found["checks"][:3]} == {
        "float32: pause of an engine, s": True,
        "float32: pause of an engine, share of a step": False,
        "float32: pause of training, share of a step": True,
    }
    assert "1.00 %     0.0010   150.0" in capsys.readouterr().out


def test_what_keeping_the_kv_costs_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sizes = ["--groups", "1", "--samples", "2", "--prompt", "8", "--answer", "12", "--updates", "1", "--change", "0.2"]
    arguments = ["--shape", "tiny", "--dtype", "float32", *sizes, "--model-cache", str(tmp_path), "--json", str(out)]
    new_weights.main(arguments)
    kept, anew = json.loads(out.read_text())["results"]
    assert (kept["way"], anew["way"]) == ("keep_kv", "recompute")
    assert kept["num_generated_tokens"] == anew["num_generated_tokens"] == 24
    assert kept["num_computed_tokens"] < anew["num_computed_tokens"]
    assert anew["max_difference"] < 1e-4 < kept["max_difference"]
    assert "log-probabilities of the last version's tokens differ by" in capsys.readouterr().out


def test_what_is_kept_beside_others_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    contention.main(["--case", "smoke", "--rounds", "1", "--model-cache", str(tmp_path), "--json", str(out)])
    case = json.loads(out.read_text())["cases"]["smoke"]
    assert case["throughput_kept"] > 0
    assert case["cores_kept"] > 0
    assert "of its throughput" in capsys.readouterr().out


def test_what_a_training_step_adds_is_measured_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    trainer_memory.main(["--case", "1-shard", "--vocabulary", "300", "--json", str(out)])
    found = json.loads(out.read_text())
    assert 0 < found["results"][0]["added_bytes"] < found["max_added_bytes"]
    assert found["checks"] == [{"case": "1-shard", "passes": True}]
    assert "MiB added" in capsys.readouterr().out


def test_the_loading_processes_end_with_the_block() -> None:
    with contention.loaded_cores(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.returncode for process in processes)


def test_the_controller_is_measured_against_its_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    controller.main(["--steps", "2", "--prompts", "2", "--samples", "2", "--tokens", "3", "--json", str(out)])
    found = json.loads(out.read_text())
    (check,) = found["checks"]
    assert check["met"] == (check["value"] <= check["bar"])
    assert found["results"]["all_threads_s_per_million_tokens"] >= check["value"] > 0
    assert "event loop s per million tokens" in capsys.readouterr().out


@pytest.mark.parametrize("max_staleness", [0, 4])
def test_a_run_of_fewer_steps_than_its_staleness_allows_ends_with_whole_counts(
    tmp_path: Path, max_staleness: int
) -> None:
    """All loops, with nothing behind them: no more is admitted than the steps need, and nobody waits for more."""
    shape = controller.Shape(
        num_steps=1, prompts_per_step=3, samples_per_prompt=2, num_tokens=4, max_staleness=max_staleness
    )
    answers = [controller.pickled_samples(shape, np.random.default_rng(0))]
    ledger = asyncio.run(controller.run(shape, answers, controller.make_tokenizer(), tmp_path))
    assert ledger.num_admitted == ledger.num_trained == 3
    assert (ledger.num_live, ledger.num_dropped) == (0, {})


def test_draws_are_measured_beside_the_plain_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sampling.main(["--vocab-size", "300", "--rounds", "1", "--json", str(out)])
    results = json.loads(out.read_text())["results"]
    assert {result["rule"] for result in results} == set(sampling.RULES)
    assert all(result["plain_draws"] == 1 for result in results if result["rule"] == "plain")
    assert "plain draws" in capsys.readouterr().out
