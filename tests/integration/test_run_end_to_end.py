"""Whole runs by the command line: what they leave behind agrees with itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from metric_names import spelled_out
from model_folders import write_model
from runs import Run, Workplace, saved_state
from transformers import AutoModelForCausalLM

from rlserve.tracking.cost.replay import replay
from rlserve.tracking.cost.uses import Use
from rlserve.tracking.summary import RunSummary

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(shared_workplace: Workplace) -> Run:
    """One run of two slots, three steps, that came to its end."""
    prices = shared_workplace.place / "prices.yaml"
    prices.write_text("currency: EUR\ndate: 2026-11-01\nper_hour: {cpu-a: 36, cpu-b: 18}\n")
    changes = {
        "algorithm": {"kl_coefficient": 0.01},
        "cost": {"prices": str(prices), "budget": {"money": 0.01}},
        "checkpoint": {"every_steps": 2},
        "tracking": {"report": True},
    }
    run = shared_workplace.start("finished", changes)
    assert run.wait() == 0, run.output
    return run


@pytest.fixture(scope="module")
def summary(finished: Run) -> RunSummary:
    return RunSummary(**json.loads((finished.folder / "summary.json").read_text()))


def test_the_counts_agree(finished: Run, summary: RunSummary) -> None:
    assert summary.num_steps == summary.final_weight_version == 3
    assert summary.groups_trained == 3 * 4
    assert summary.groups_admitted == summary.groups_trained + sum(summary.groups_dropped.values())
    assert (summary.engine_restarts, summary.worker_failures) == (0, 0)
    assert summary.held_out_before is not None
    assert summary.held_out_after is not None
    assert 0 <= summary.max_staleness <= 1
    assert summary.mean_abs_log_prob_difference is not None
    assert summary.mean_abs_log_prob_difference < 0.1
    assert summary.seconds_to_first_step is not None
    assert 0 < summary.seconds_to_first_step < summary.seconds_total


def test_the_costs_add_up_to_the_time_of_the_slots(finished: Run, summary: RunSummary) -> None:
    cost, seconds = summary.cost, summary.seconds_total
    assert cost["total"]["gpu_hours"] == pytest.approx(2 * seconds / 3600, rel=1e-3)
    assert cost["total"]["money"] == pytest.approx(seconds * (0.01 + 0.005), rel=1e-3)
    assert sum(use["gpu_hours"] for use in cost["uses"].values()) == pytest.approx(cost["total"]["gpu_hours"])
    told, (end,) = replay(finished.lines("events.jsonl")).statement(0.0), finished.events("end")
    told.check_integrity()
    assert told.gpu_hours == pytest.approx(2 * end["time_s"] / 3600)
    assert told.hours_of(Use.IN_FLIGHT) == 0.0
    assert min(told.hours_of(use) for use in (Use.TRAINING, Use.ROLLOUT, Use.EVALUATION)) > 0.0
    (passed,) = finished.events("budget")
    assert (passed["unit"], passed["stops"]) == ("money", False)
    assert (finished.folder / "prices.yaml").read_text().startswith("currency: EUR")


def test_no_group_is_trained_twice(finished: Run) -> None:
    lines = finished.lines("samples.jsonl")
    trained = [group_id for line in lines for group_id in line["group_ids"]]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert len(trained) == len(set(trained)) == 12
    for line in lines:
        assert all(line["step"] - 1 - version <= 1 for version in line["oldest_versions"])
        assert all(len(rewards) == 2 for rewards in line["rewards"])


def test_versions_reach_every_replica_in_order_up_to_the_last(finished: Run) -> None:
    published = [event["version"] for event in finished.events("weights") if event["slot_id"] is None]
    taken = [event["version"] for event in finished.events("weights") if event["slot_id"] == "cpu-b/0"]
    for versions in (published, taken):
        assert versions == sorted(set(versions))
        assert (versions[0], versions[-1]) == (0, 3)
    assert set(taken) <= set(published)


def test_every_step_has_its_metrics(finished: Run) -> None:
    steps = [line["step"] for line in finished.lines("metrics.jsonl") if "actor/pg_loss" in line]
    assert steps == [1, 2, 3]


def test_every_metric_that_is_documented_is_written_and_every_one_written_is_documented(finished: Run) -> None:
    written = {name for line in finished.lines("metrics.jsonl") for name in line} - {"step"}
    assert "reward/num_kinds/mean" in written
    of_another_algorithm = {
        "actor/entropy_threshold",
        "actor/kl_loss",
        "actor/positive_nll_loss",
        "critic/head_lr",
        "critic/kl_coefficient",
        "rollout/greedy_score/mean",
        "training/rejected_frac",
    }
    of_another_placement = {name for name in spelled_out() if re.match(r"pool/(turn|engine|trainer)_", name)}
    of_clusters = {
        *("pool/num_wanted", "pool/num_asked", "pool/num_grown"),  # that grow
        *("cost/money_per_hour", "cost/money_per_hour_limit"),
        *("pool/num_lent", "pool/num_borrowed", "pool/num_owed"),  # that are shared
    }
    of_conversations = {name for name in spelled_out() if re.search(r"environment|num_turns", name)}
    of_data_sets = {name for name in spelled_out() if name.startswith(("train/", "val/"))}
    assert of_another_placement
    assert of_conversations
    assert of_data_sets
    expected = (
        spelled_out() - of_another_algorithm - of_another_placement - of_clusters - of_conversations - of_data_sets
    )
    named = {name.replace("/num_kinds/", "/NAME/") for name in written}
    assert {re.sub(r"^reward/\w+/", "reward/NAME/", name) for name in named} == expected


def test_answers_are_kept_in_full(finished: Run) -> None:
    answers = finished.lines("answers.jsonl")
    rewards = {
        (line["step"], group_id, index): reward
        for line in finished.lines("samples.jsonl")
        for group_id, of_group in zip(line["group_ids"], line["rewards"], strict=True)
        for index, reward in enumerate(of_group)
    }
    kept = {(each["step"], each["group_id"], each["index"]): each for each in answers if each["kind"] == "training"}
    assert kept.keys() == rewards.keys(), "4 groups of each step are kept, and a step has 4"
    for key, answer in kept.items():
        assert answer["reward"] == rewards[key]
        assert answer["prompt"]
        assert answer["finish_reason"] == ("length" if answer["num_response_tokens"] == 16 else "stop")
        assert answer["weight_spans"][-1][2] == answer["num_response_tokens"]


def test_the_report_is_made_and_latest_points_at_the_run(finished: Run) -> None:
    assert (finished.folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (finished.folder / "report.html").read_text()
    assert (finished.folder.parent / "latest").resolve() == finished.folder


def test_the_policy_of_the_checkpoint_is_what_was_trained(finished: Run, tiny_model: Path) -> None:
    checkpoint = finished.folder / "checkpoints" / "step_000003"
    policy = AutoModelForCausalLM.from_pretrained(checkpoint / "policy").state_dict()
    state = saved_state(checkpoint)
    initial = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    saved = {name.removeprefix("policy."): value for name, value in state.items() if name.startswith("policy.")}
    assert saved
    assert all(policy[name].equal(value) for name, value in saved.items())
    assert any(not policy[name].equal(initial[name]) for name in saved)


def test_nothing_of_the_run_is_left(finished: Run) -> None:
    finished.wait_for_no_processes()


def test_nothing_but_our_own_lines_is_printed(finished: Run) -> None:
    assert "Token authentication" not in finished.output
    assert "Traceback" not in finished.output


@pytest.mark.parametrize(("family", "placement"), [("llama", "elastic"), ("qwen2", "colocated")])
def test_other_families_on_a_pool_of_one_type_measure_no_difference(
    workplace: Workplace, family: str, placement: str
) -> None:
    """With ``trainer.deterministic``, engine and trainer of a whole run give the same log-probabilities: also where
    each engine has the weights of the trainer in its own process."""
    changes = {
        "model": {"path": str(write_model(workplace.place / family, family))},
        "num_steps": 2,
        "pool": {"slots": [{"type": "cpu", "count": 3}], "placement": placement},
        "trainer": {"deterministic": True},
        "rollout": {"max_staleness": 0, "temperature": 0.8},
    }
    run = workplace.start(family, changes)
    assert run.wait() == 0, run.output
    assert run.num_steps() == 2
    assert {event["slot_type"] for event in run.events("slot")} == {"cpu"}
    steps = [line for line in run.lines("metrics.jsonl") if "training/log_prob_diff_max" in line]
    assert [line["training/log_prob_diff_staleness"] for line in steps] == [0, 0]
    assert [line["training/log_prob_diff_max"] for line in steps] == [0.0, 0.0]
    assert [line["training/behaviour_kl"] for line in steps] == [0.0, 0.0]
    turns = run.events("turn")
    if placement == "elastic":
        assert turns == []
        return
    assert [turn["to"] for turn in turns] == ["rollout", "train", "rollout", "train", "rollout"]
    assert all(turn["released_bytes"] > 0 for turn in turns if turn["to"] == "train"), "engines gave memory back"
    owners = [event["owner"] for event in run.events("slot") if event["slot_id"] == "cpu/0"]
    assert [owner for owner in owners if owner != "moving"] == [
        "train",
        "rollout",
        "train",
        "rollout",
        "train",
        "rollout",
    ]
