"""Every example runs as its README says, on small models, from the folder of the repository."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import served

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(*command: str | Path, given: str | None = None) -> str:
    """Run a command in the repository, ``given`` what it reads, and return what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "WANDB_MODE": "offline"}
    environment["RANKS_SECRET"] = "of these two"
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=ROOT, env=environment, input=given, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def example_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    run(sys.executable, EXAMPLES / "own_model/make_tiny_model.py", folder, "--family", "qwen3")
    return folder


def test_the_engine_alone(example_model: Path) -> None:
    lines = run(sys.executable, EXAMPLES / "library/engine.py", example_model, "12+34=", "7+8=").splitlines()
    assert [line.split(" → ")[0] for line in lines[:-1]] == ["'12+34='"] * 4 + ["'7+8='"] * 4
    assert len({line.split(" → ")[1] for line in lines[:4]}) == 4, "the samples of a prompt differ"
    num_tokens = sum(int(number) for line in lines[:-1] for number in re.findall(r"(\d+) tokens, ", line))
    assert lines[-1].startswith(f"{num_tokens} tokens in ")


def test_the_engine_over_two_processes(example_model: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with ThreadPoolExecutor() as threads:
        ranks = [
            threads.submit(run, sys.executable, EXAMPLES / "library/ranks.py", example_model, str(rank), "2", address)
            for rank in range(2)
        ]
        samples, goodbye = (rank.result() for rank in ranks)
    assert [len(token_ids) for token_ids in ast.literal_eval(samples)] == [16] * 4
    assert goodbye == "rank 1 was told to end\n"


def test_the_trainer_alone(example_model: Path) -> None:
    lines = run(sys.executable, EXAMPLES / "library/trainer.py", example_model).splitlines()
    pairs = [tuple(map(float, re.findall(r"answers (\S+),.* others (\S+)", line)[0])) for line in lines]
    gaps = [rewarded - other for rewarded, other in pairs]
    assert len(gaps) == 5
    assert gaps == sorted(gaps)
    assert gaps[-1] > gaps[0] + 0.1, "rewarded answers become likelier than the others"


def test_the_data_are_what_the_program_makes(tmp_path: Path) -> None:
    made = tmp_path / "prompts.jsonl"
    run(sys.executable, EXAMPLES / "reward_function/make_data.py", "--output", made)
    assert made.read_text() == (EXAMPLES / "reward_function/prompts.jsonl").read_text()


def test_the_warm_started_model_of_an_own_task_can_be_launched(tmp_path: Path) -> None:
    made = tmp_path / "prompts.jsonl"
    run(sys.executable, EXAMPLES / "own_task/sorting.py", "--output", made)
    assert made.read_text() == (EXAMPLES / "own_task/prompts.jsonl").read_text()
    model = tmp_path / "sorter"
    run(sys.executable, EXAMPLES / "own_task/warm_start.py", model, "--num-steps", "2")
    command = [Path(sys.executable).with_name("rlserve"), "launch", EXAMPLES / "own_task/run.yaml", "--dry-run"]
    about = run(*command, f"model.path={model}")
    assert "answers end at: '<end>' (1)" in about
    assert "the reward of a reference answer: 1\n" in about


def test_the_warm_started_programmer_can_be_launched_and_its_programs_are_run(tmp_path: Path) -> None:
    made = tmp_path / "prompts.jsonl"
    run(sys.executable, EXAMPLES / "code_reward/programs.py", "--output", made)
    assert made.read_text() == (EXAMPLES / "code_reward/prompts.jsonl").read_text()
    model = tmp_path / "programmer"
    run(sys.executable, EXAMPLES / "code_reward/warm_start.py", model, "--num-steps", "2")
    command = [Path(sys.executable).with_name("rlserve"), "launch", EXAMPLES / "code_reward/run.yaml", "--dry-run"]
    about = run(*command, f"model.path={model}")
    assert "the reward of a reference answer: 1, with tests_passed 1, with timed_out 0\n" in about


def test_the_model_that_is_to_learn_a_tool_can_be_launched_with_it(tmp_path: Path) -> None:
    made = tmp_path / "prompts.jsonl"
    run(sys.executable, EXAMPLES / "calculator_tool/multiplication.py", "--output", made)
    assert made.read_text() == (EXAMPLES / "calculator_tool/prompts.jsonl").read_text()
    model = tmp_path / "multiplier"
    run(sys.executable, EXAMPLES / "calculator_tool/warm_start.py", model, "--num-steps", "2")
    command = [Path(sys.executable).with_name("rlserve"), "launch", EXAMPLES / "calculator_tool/run.yaml", "--dry-run"]
    about = run(*command, f"model.path={model}")
    assert "the environment was made and reset for prompt held_out:" in about
    assert "the reward of a reference answer: 1\n" in about


def test_the_three_jobs_of_a_reward_model_can_be_launched(tmp_path: Path) -> None:
    run(sys.executable, EXAMPLES / "reward_model/sorting.py", "--output", tmp_path)
    for name in ("demonstrations", "preferences", "prompts"):
        assert (tmp_path / f"{name}.jsonl").read_text() == (EXAMPLES / f"reward_model/{name}.jsonl").read_text()
    model = tmp_path / "blank"
    run(sys.executable, EXAMPLES / "reward_model/make_model.py", model)
    rlserve = Path(sys.executable).with_name("rlserve")
    for job in ("sft", "reward_model"):
        about = run(rlserve, "launch", EXAMPLES / f"reward_model/{job}.yaml", "--dry-run", f"model.path={model}")
        assert "all of them train" in about
        assert "rows to train on" in about


def test_the_snippets_of_the_readme(example_model: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    program = "".join(block for block in blocks if "from rlserve." in block)
    assert "engine.step()" in program
    program += "engine.load_weights(trainer.num_steps + 1, weights)\nprint(engine.weight_version)\n"
    samples, version = run(sys.executable, "-c", program.replace('"tiny"', repr(str(example_model)))).splitlines()
    assert len(ast.literal_eval(samples)) == 4
    assert version == "1"


def test_what_is_said_to_a_served_model(tmp_path: Path) -> None:
    with served("builtin:addition") as server:
        words = ["12+34=", "/retry", "/new", "1+1=", "/quit"]
        said = run(sys.executable, EXAMPLES / "chat/chat.py", server.url, "--temperature", "0", given="\n".join(words))
    answers = said.splitlines()[::2]
    assert len(answers) == 3
    assert answers[0] == answers[1]
    assert re.match(r"  \[6 tokens read, \d+ of them remembered; \d+ written; ", said.splitlines()[1]), said


def test_code_is_completed_and_documented(tmp_path: Path) -> None:
    model, requests, page = tmp_path / "assistant", tmp_path / "keystrokes.jsonl", tmp_path / "page.md"
    run(sys.executable, EXAMPLES / "code_assistant/make_model.py", model, "--num-steps", "2")
    run(sys.executable, EXAMPLES / "code_assistant/keystrokes.py", requests, "--num-writers", "2", "--num-pauses", "4")
    assert len(requests.read_text().splitlines()) == 8
    module = EXAMPLES / "document_writer/writer.py"
    with served(EXAMPLES / "code_assistant/serve.yaml", f"model.path={model}") as server:
        for number in ("1", "2"):
            command = [EXAMPLES / "code_assistant/complete.py", module, "40", server.url, "--num-answers", number]
            assert run(sys.executable, *command)
        run(sys.executable, module, module, server.url, "--output", page, "--max-tokens", "16")
        assert server.metric("vllm:prefix_cache_hits_total") > 0
        told = run(
            Path(sys.executable).with_name("rlserve"), "bench", server.url, "--workload", "trace", "--file", requests
        )
    assert re.search(r"answered +8 ", told), told
    assert [line for line in page.read_text().splitlines() if line.startswith("## ")] == [
        f"## `{name}`" for name in ("request", "find_sections", "write", "write_all", "fit", "document", "main")
    ]


@pytest.mark.slow
def test_a_run_with_a_reward_function_and_a_model_of_ones_own(example_model: Path, tmp_path: Path) -> None:
    run(
        Path(sys.executable).with_name("rlserve"),
        "launch",
        EXAMPLES / "reward_function/run.yaml",
        f"model.path={example_model}",
        f"output_dir={tmp_path}",
        "name=example",
        "num_steps=2",
        "rollout.max_tokens=24",
        "data.num_held_out=16",
        "tracking=off",
    )
    summary = json.loads((tmp_path / "example/summary.json").read_text())
    assert (summary["num_steps"], summary["final_weight_version"]) == (2, 2)
    assert (summary["groups_admitted"], summary["groups_trained"], summary["groups_dropped"]) == (32, 32, {})


@pytest.mark.slow
def test_a_run_with_a_tool(tmp_path: Path) -> None:
    model = tmp_path / "multiplier"
    run(sys.executable, EXAMPLES / "calculator_tool/warm_start.py", model, "--num-steps", "60")
    run(
        Path(sys.executable).with_name("rlserve"),
        "launch",
        EXAMPLES / "calculator_tool/run.yaml",
        f"model.path={model}",
        f"output_dir={tmp_path}",
        "name=tool",
        "num_steps=2",
        "data.num_held_out=16",
        "tracking=off",
    )
    summary = json.loads((tmp_path / "tool/summary.json").read_text())
    assert (summary["num_steps"], summary["groups_trained"], summary["groups_dropped"]) == (2, 32, {})
    lines = [json.loads(line) for line in (tmp_path / "tool/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "rollout/num_turns/mean" in line]
    assert len(steps) == 2
    assert all(line["reward/environment/mean"] == 0.0 for line in steps), "the reward function alone gives rewards"
