"""What load generators and evaluation harnesses measure here, by their own reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from served import ServedModel

NUM_REQUESTS = 12
NUM_OUTPUT_TOKENS = 16

pytestmark = pytest.mark.slow


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.client("guidellm")
def test_guidellm(server: ServedModel, word_model: Path, run_client: Any, tmp_path: Path) -> None:
    run_client(
        "run",
        *("--backend", f"kind=openai_http,target={server.url}"),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={word_model}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={NUM_OUTPUT_TOKENS}"),
        *("--output", "kind=json,path=report.json"),
        "--disable-progress",
    )
    metrics = read(tmp_path / "report.json")["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    assert (totals["successful"], totals["errored"]) == (NUM_REQUESTS, 0)
    assert metrics["output_token_count"]["successful"]["mean"] == NUM_OUTPUT_TOKENS


@pytest.mark.client("aiperf")
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_aiperf(server: ServedModel, word_model: Path, run_client: Any, tmp_path: Path, endpoint: str) -> None:
    run_client(
        "profile",
        *("-m", "words", "--url", server.url, "--tokenizer", str(word_model)),
        *("--endpoint-type", endpoint, "--streaming", "--use-server-token-count"),
        *("--concurrency", "4", "--request-count", str(NUM_REQUESTS), "--isl", "32", "--osl", str(NUM_OUTPUT_TOKENS)),
        *("--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{NUM_OUTPUT_TOKENS}"),
        *("--ui", "none", "--output-artifact-dir", "report"),
    )
    report = read(tmp_path / "report" / "profile_export_aiperf.json")
    assert report["request_count"]["avg"] == NUM_REQUESTS
    assert report["output_sequence_length"]["avg"] == NUM_OUTPUT_TOKENS
    assert read(tmp_path / "report" / "server_metrics_export.json"), "it read /metrics"


@pytest.mark.client("evalscope")
def test_evalscope(server: ServedModel, word_model: Path, run_client: Any, tmp_path: Path) -> None:
    run_client(
        "perf",
        *("--url", f"{server.url}/v1/chat/completions", "--model", "words", "--api", "openai"),
        *("--dataset", "random", "--tokenizer-path", str(word_model)),
        *("--min-prompt-length", "20", "--max-prompt-length", "40", "--prefix-length", "0"),
        *("--min-tokens", str(NUM_OUTPUT_TOKENS), "--max-tokens", str(NUM_OUTPUT_TOKENS)),
        *("--parallel", "4", "--number", str(NUM_REQUESTS), "--stream", "--temperature", "0", "--outputs-dir", "out"),
    )
    (path,) = (tmp_path / "out").rglob("benchmark_summary.json")
    summary = {name.lower(): value for name, value in read(path).items()}
    assert summary["success requests"] == NUM_REQUESTS
    assert summary["failed requests"] == 0


@pytest.mark.client("vllm")
@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_vllm_bench_serve(
    server: ServedModel, word_model: Path, run_client: Any, tmp_path: Path, backend: str, endpoint: str
) -> None:
    run_client(
        *("bench", "serve", "--base-url", server.url, "--model", "words", "--tokenizer", str(word_model)),
        *("--backend", backend, "--endpoint", endpoint, "--dataset-name", "random", "--ignore-eos"),
        *("--random-input-len", "32", "--random-output-len", str(NUM_OUTPUT_TOKENS)),
        *("--num-prompts", str(NUM_REQUESTS), "--max-concurrency", "4"),
        *("--save-result", "--result-filename", "report.json"),
    )
    report = read(tmp_path / "report.json")
    assert (report["completed"], report["failed"]) == (NUM_REQUESTS, 0)
    assert report["total_output_tokens"] == NUM_REQUESTS * NUM_OUTPUT_TOKENS


LOCUST_FILE = """
from locust import HttpUser, task

class Reader(HttpUser):
    @task
    def ask(self):
        body = {"prompt": "bacado", "max_tokens": 8, "ignore_eos": True}
        with self.client.post("/v1/completions", json=body, catch_response=True) as response:
            if response.json()["usage"]["completion_tokens"] != 8:
                response.failure("not eight tokens")
"""


@pytest.mark.client("locust")
def test_locust(server: ServedModel, run_client: Any, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(LOCUST_FILE)
    run_client(
        *("-f", "file.py", "--headless", "-u", "4", "-r", "4", "-t", "5s", "--host", server.url),
        *("--json-file", "report"),
    )
    (entry,) = read(tmp_path / "report.json")
    assert entry["num_requests"] > 0
    assert entry["num_failures"] == 0


LM_EVAL_TASKS = {
    "likely": """
task: likely
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "written": """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match}]
""",
}


@pytest.mark.client("lm_eval")
def test_lm_eval_finds_what_its_own_backend_does(
    server: ServedModel, word_model: Path, run_client: Any, tmp_path: Path
) -> None:
    rows = [
        {
            "question": " ".join(["bacado", "lira", "sugu", "pade"][number % 4 :] + ["rika"] * (number % 3)),
            "choices": ["mo", "te zo", "lira pade mo"],
            "gold": number % 3,
        }
        for number in range(NUM_REQUESTS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    for name, text in LM_EVAL_TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.replace("ROWS", str(tmp_path / "rows.jsonl")))
    tasks = ("--tasks", "likely,written", "--include_path", "tasks", "--log_samples")
    ours = (
        f"model=words,base_url={server.url}/v1/completions,tokenizer={word_model},num_concurrent=4,"
        "tokenized_requests=True"
    )
    run_client("--model", "local-completions", "--model_args", ours, *tasks, "--output_path", "ours")
    theirs = f"pretrained={word_model},dtype=float32"
    run_client("--model", "hf", "--device", "cpu", "--model_args", theirs, *tasks, "--output_path", "theirs")
    assert answers(tmp_path / "ours", "written") == answers(tmp_path / "theirs", "written")
    likelihoods = [answers(tmp_path / side, "likely") for side in ("ours", "theirs")]
    for our, their in zip(*likelihoods, strict=True):
        assert [float(value) for value in flat(our)] == pytest.approx([float(value) for value in flat(their)], abs=1e-3)


def answers(folder: Path, task: str) -> list[Any]:
    """What the model answered to each row, in the order of rows."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [sample["resps"] for sample in sorted(found, key=lambda sample: int(sample["doc_id"]))]


def flat(responses: list[Any]) -> list[str]:
    """Log-likelihoods of the choices."""
    return [choice[0][0] for choice in responses]
