"""``rlserve eval``: what is found under a name, what it is scored on, and a whole small evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_folders import write_model
from small_runs import begin_run, finished_run

from rlserve.cli import main
from rlserve.cli.checkpoints import find_checkpoint
from rlserve.cli.eval import describe, load_config
from rlserve.controller.checkpoint import note_score
from rlserve.controller.checkpoint_evaluation import CheckpointScore, EvaluatedAnswer, summarise
from rlserve.errors import UserError
from rlserve.tracking.run_folder import RunFolder

REWARD = "def score(sample):\n    print('scored')\n    return {'score': float(sample.row['level']), 'length': 3}\n"
CONFIG = """\
model: {path: model}
data: {path: data.jsonl, num_held_out: 2}
reward: {function: "r.py:score"}
rollout: {max_tokens: 4, samples_per_prompt: 8, engine: {dtype: float32, kv_cache_bytes: 4000000}}
pool: {slots: [{type: H100, count: 8}], num_initial_rollout: 3}
evaluation: {success_threshold: 2.0}
"""


@pytest.fixture
def run(place: Path) -> RunFolder:
    """A run of eight GPUs whose checkpoint after step 3 is a small model with random weights."""
    (place / "r.py").write_text(REWARD)
    for name, number in (("data", 6), ("other", 3)):
        rows = [{"prompt": f"{index}+1=", "answer": "2", "level": index} for index in range(number)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = finished_run(place / "runs", "r1")
    folder.config_file.write_text(CONFIG)
    for step in (2, 3):
        (folder.checkpoints / f"step_{step:06d}").mkdir()
        (folder.checkpoints / f"step_{step:06d}/manifest.json").write_text("{}")
    write_model(folder.checkpoints / "step_000003/policy")
    return folder


def test_all_ways_to_name_a_checkpoint_lead_to_it(run: RunFolder, place: Path) -> None:
    run.make_latest()
    step = run.checkpoints / "step_000003"
    for name in ("r1", "latest", "runs/r1", str(run.path), str(step), str(step / "policy")):
        found = find_checkpoint(name, "runs")
        assert (found.model_path, found.run, found.label) == (step / "policy", run.path, "r1-step_000003")


def test_a_folder_of_hugging_face_belongs_to_no_run(place: Path) -> None:
    model = write_model(place / "m")
    found = find_checkpoint("m", "runs")
    assert (found.model_path, found.run, found.label) == (model, None, "m")


def test_what_is_no_checkpoint_is_said(place: Path) -> None:
    begin_run(place / "runs", "young")
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        find_checkpoint("young", "runs")
    with pytest.raises(UserError, match="no checkpoint 'nosuch': name a run"):
        find_checkpoint("nosuch", "runs")


def test_the_best_of_a_run_is_the_newest_of_those_with_the_best_score(run: RunFolder, place: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint of .*r1 has a held-out score .*: leave --best out"):
        find_checkpoint("r1", "runs", best=True)
    for step, score in ((1, 0.5), (2, 0.75), (3, None), (4, 0.75), (5, 0.25)):
        folder = run.checkpoints / f"step_{step:06d}"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "run.json").write_text(json.dumps({"held_out": score}))
    assert find_checkpoint("r1", "runs", best=True).label == "r1-step_000004"
    note_score(run.checkpoints / "step_000005", 0.9)  # the last one, which is scored once it is written
    assert find_checkpoint("r1", "runs", best=True).label == "r1-step_000005"
    write_model(place / "m")
    with pytest.raises(UserError, match="'m' is no run: leave it out"):
        find_checkpoint("m", "runs", best=True)


def test_the_run_decides_and_its_gpus_need_not_be_here(run: RunFolder) -> None:
    config = load_config(find_checkpoint("r1", "runs"), None, ["evaluation.temperature=0.5"])
    assert config.evaluation.temperature == 0.5
    assert config.evaluation.success_threshold == 2.0
    assert config.data.held_out_path is None


def test_data_that_are_named_are_scored_on_as_a_whole(run: RunFolder, place: Path) -> None:
    checkpoint = find_checkpoint("r1", "runs")
    config = load_config(checkpoint, None, ["data.path=other.jsonl", "data.num_held_out=null"])
    assert config.data.held_out_path == config.data.path == str(place / "other.jsonl")
    config = load_config(checkpoint, None, ["data.path=other.jsonl", "data.held_out_path=data.jsonl"])
    assert config.data.held_out_path == str(place / "data.jsonl")


def test_a_model_is_scored_by_the_configuration_that_is_named(run: RunFolder, place: Path) -> None:
    model = write_model(place / "m")
    config = load_config(find_checkpoint("m", "runs"), "runs/r1", [])
    assert (config.model.path, config.rollout.max_tokens) == (str(model), 4)


def test_a_run_that_learned_from_a_data_set_is_refused_with_the_remedy(run: RunFolder, place: Path) -> None:
    (place / "sft.yaml").write_text("model: {path: m}\ndata: {path: a/b}\nalgorithm: {name: sft}\n")
    with pytest.raises(UserError, match=r"algorithm\.name=sft.* no reward .*that has, with --config"):
        load_config(find_checkpoint("r1", "runs"), "sft.yaml", [])


def test_a_checkpoint_is_scored(run: RunFolder, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["data.path=other.jsonl", "data.num_held_out=null", "--json", "--output", "out/e.json"]
    words += ["evaluation.temperature=1", "rollout.samples_per_prompt=2"]
    assert main(["eval", "r1", *words]) == 0
    captured = capfd.readouterr()
    printed = json.loads(captured.out)
    assert "scored" in captured.err
    assert (printed["num_prompts"], printed["num_answers"], printed["num_failed"]) == (3, 6, 0)
    assert printed["share_right"] == pytest.approx(1 / 3)  # rewards 0, 1 and 2; 2 is right
    assert printed["mean_reward"] == pytest.approx(1.0)
    answers = json.loads((place / "out/e.json").read_text())["answers"]
    assert {answer["prompt"] for answer in answers} == {"0+1=", "1+1=", "2+1="}
    assert all(answer["reward_parts"] == {"length": 3.0} for answer in answers)


def test_a_reward_that_hangs_costs_its_own_answers_only(
    run: RunFolder, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "r.py").write_text(
        "import os, threading\n"
        "def score(sample):\n"
        "    level = sample.row['level']\n"
        "    if level == 0: threading.Event().wait()\n"
        "    if level == 1: os._exit(3)\n"
        "    return None\n"
    )
    words = ["data.path=other.jsonl", "data.num_held_out=null", "reward.timeout_s=1", "reward.num_workers=3"]
    assert main(["eval", "r1", *words, "evaluation.temperature=1", "rollout.samples_per_prompt=1", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["num_scored"], printed["num_failed"], printed["num_left_out"]) == (0, 2, 1)
    answers = {
        answer["prompt"]: answer["error"] for answer in json.loads(Path(printed["result"]).read_text())["answers"]
    }
    assert "no answer within reward.timeout_s=1" in answers["0+1="]
    assert "its process ended with exit code 3" in answers["1+1="]
    assert answers["2+1="] is None


def test_several_greedy_answers_are_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "r1", "rollout.samples_per_prompt=4"]) == 2
    assert "would all be alike" in capsys.readouterr().err


def answer(
    prompt_id: str, reward: float | None, *, is_right: bool = False, finish_reason: str = "stop", fails: bool = True
) -> EvaluatedAnswer:
    return EvaluatedAnswer(
        prompt_id=prompt_id,
        index=0,
        prompt="",
        reference=None,
        response="",
        reward=reward,
        reward_parts={},
        error="failed" if reward is None and fails else None,
        is_right=is_right,
        finish_reason=finish_reason,
        num_response_tokens=1,
    )


def test_what_could_not_be_scored_is_left_out_of_shares_and_counted() -> None:
    score = summarise(
        [
            answer("a", 1.0, is_right=True),
            answer("a", 0.0, finish_reason="length"),
            answer("b", 0.5),
            answer("c", None, finish_reason="error"),
            answer("d", None, fails=False),
        ]
    )
    assert score == CheckpointScore(
        share_right=1 / 3,
        share_of_prompts_right=1 / 2,
        mean_reward=0.5,
        share_cut=1 / 4,
        num_prompts=4,
        num_answers=5,
        num_scored=3,
        num_failed=1,
        num_left_out=1,
    )
    assert list(describe(score)) == [
        "held-out score 0.333: 1 of 3 answers to 4 prompts are right",
        "prompts with a right answer 0.500",
        "mean reward 0.5",
        "cut by rollout.max_tokens: 0.250 of the answers",
        "1 answers could not be scored and are left out: see their error in the file",
        "1 answers were left out by the reward, which returned None",
    ]


def test_nothing_scored_is_no_share() -> None:
    score = summarise([answer("a", None)])
    assert (score.share_right, score.mean_reward, score.share_of_prompts_right) == (None, None, None)
    assert next(iter(describe(score))) == "none of 1 answers could be scored"
