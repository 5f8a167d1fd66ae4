"""A run that Prometheus watches."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from runs import Workplace

pytestmark = pytest.mark.slow


def test_the_engines_of_a_run_are_seen_while_it_goes_on(workplace: Workplace) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = workplace.start("watched", {"num_steps": 1000, "tracking": {"prometheus_port": port}})
    run.wait_until(lambda: run.num_steps() >= 1, "a step")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    run.interrupt()
    assert run.wait() == 130, run.output
    samples = {sample.name: sample for family in families for sample in family.samples}
    generated = samples["vllm:generation_tokens_total"]
    assert generated.labels["engine"] == "cpu-b/0"
    assert generated.labels["model_name"]
    assert generated.value > 0
    assert samples["vllm:time_to_first_token_seconds_count"].value > 0
    assert samples["rlserve_training_global_step"].value >= 1
