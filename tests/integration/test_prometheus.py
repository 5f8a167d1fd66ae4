"""A run that Prometheus watches, in a temporary folder too long for Ray's sockets."""

from __future__ import annotations

import signal
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from runs import Workplace

from rlserve.controller.checkpoint import is_whole

pytestmark = pytest.mark.slow


def test_a_run_is_watched_and_terminated_with_a_long_temporary_folder(workplace: Workplace) -> None:
    """Its engines are seen while it goes on. Ray goes elsewhere and leaves nothing there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    long = workplace.place / ("a" * 90)
    long.mkdir()
    changes = {"num_steps": 1000, "tracking": {"prometheus_port": port}}
    run = workplace.start("watched", changes, environment={"TMPDIR": str(long)})
    run.wait_until(lambda: run.num_steps() >= 1, "a step")
    samples: dict[str, Sample] = {}

    def shows_the_step() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            samples.update({sample.name: sample for family in families for sample in family.samples})
        return "rlserve_training_global_step" in samples

    run.wait_until(shows_the_step, "the step's metrics, which come after its line")
    ray_folder = run.ray_folder()
    run.process.send_signal(signal.SIGUSR2)
    assert run.wait() == 128 + signal.SIGUSR2, run.output
    assert not ray_folder.exists()
    assert is_whole(max(run.folder.glob("checkpoints/step_*")))
    run.wait_for_no_processes()
    generated = samples["vllm:generation_tokens_total"]
    assert generated.labels["engine"] == "cpu-b/0"
    assert generated.labels["model_name"]
    assert generated.value > 0
    assert samples["vllm:time_to_first_token_seconds_count"].value > 0
    assert samples["rlserve_training_global_step"].value >= 1
