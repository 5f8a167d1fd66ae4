"""A run's server filters its clients and has its engines profiled, and training has nothing of either."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from runs import Run, Workplace

pytestmark = pytest.mark.slow

ADMIN_KEY = "a-key-of-operators"


@pytest.fixture
def run(workplace: Workplace, tmp_path: Path) -> Run:
    """Whose clients read and write no digits, which is all that its model has to say."""
    rules = tmp_path / "deny.txt"
    rules.write_text("[digits]\n/[0-9]/\n")
    settings: dict[str, Any] = {
        "num_steps": 10_000,
        "rollout": {
            "engine": {"num_blocks": 1024},
            "server": {
                "enabled": True,
                "name": "learning",
                "admin": {"port": 0, "profile_folder": str(tmp_path / "profiles")},
                "content": {"filter": "deny_list", "deny_list": str(rules)},
            },
        },
    }
    return workplace.start("filtered", settings, environment={"RLSERVE_ADMIN_KEYS": ADMIN_KEY})


def addresses(run: Run) -> tuple[str, str]:
    """Of the API and of the admin listener."""
    run.wait_until(lambda: run.num_steps() >= 1 and (run.folder / "server.json").exists(), "the first step")
    address = json.loads((run.folder / "server.json").read_text())["address"]
    found = re.search(r"administered on (\S+)", (run.folder / "rlserve.log").read_text())
    assert found is not None
    return str(address), found[1]


def test_clients_are_filtered_engines_profiled_and_training_goes_on(run: Run, tmp_path: Path) -> None:
    address, admin = addresses(run)
    with httpx.Client(base_url=f"{address}/", timeout=120) as client:
        refused = client.post("completions", json={"prompt": "12+34="})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
        (choice,) = client.post("completions", json={"prompt": "=", "max_tokens": 200, "ignore_eos": True}).json()[
            "choices"
        ]
        assert choice["finish_reason"] == "content_filter"
        assert re.search("[0-9]", choice["text"]) is None
        metrics = client.get(f"{address.removesuffix('/v1')}/metrics").text
    assert 'rlserve:refused_total{kind="digits",source="prompt"} 1.0' in metrics
    assert 'rlserve:refused_total{kind="digits",source="answer"} 1.0' in metrics

    with httpx.Client(base_url=admin, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=200) as operator:
        assert operator.post("/admin/profile", json={"replica": "nobody"}).status_code == 404
        answer = operator.post("/admin/profile", json={"num_steps": 5, "seconds": 60})
        assert answer.status_code == 200, answer.text
        profile = answer.json()
        assert operator.post("/admin/weights", json={"path": str(tmp_path)}).status_code in (400, 501)
    assert profile["num_steps"] == 5
    assert profile["replica"] in run.owners()
    trace = Path(profile["path"])
    assert trace.parent == tmp_path / "profiles"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {event["name"] for event in events} >= {f"engine step {number}" for number in range(5)}

    before = run.num_steps()
    run.wait_until(lambda: run.num_steps() >= before + 2, "two more steps")
    texts = [line["response"] for line in run.lines("answers.jsonl")]
    assert any(re.search("[0-9]", text) for text in texts), "training reads and writes what clients may not"
    run.interrupt()
