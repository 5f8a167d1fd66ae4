"""What a run becomes for SkyPilot. Its own library checks that where one says which Python has it, for it does not go
together with other packages:

RLSERVE_TEST_SKYPILOT=/a/venv/bin/python pytest tests/unit/launch/schedulers/test_scheduler_skypilot.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_files import check_golden
from hypothesis import given
from hypothesis import strategies as st
from plans import PRICES, plan_of

from rlserve.config import load
from rlserve.config.prices import check_prices
from rlserve.errors import UserError
from rlserve.launch.config import SkyPilotConfig
from rlserve.launch.schedulers.base import JobState
from rlserve.launch.schedulers.plan import NodeGroup
from rlserve.launch.schedulers.skypilot.scheduler import SkyPilotScheduler, preferences, read_state, tasks_of

BASE = ("launch.image=me/rlserve:1", "launch.skypilot.bucket=s3://runs")
SPOT = "pool.slots=[{type: H100, count: 8, prefer: train}, {type: H200-spot, count: 4}]"
FULL = (SPOT, "launch.skypilot.infra=[aws/us-east-1,gcp]", "launch.skypilot.rollout_types=[A100]", *BASE)
SETTINGS = {
    "full": FULL,
    "cpu": BASE,
    "one": ("pool.slots=[{type: H100, count: 16}]", *BASE),
    "on demand": ("pool=h100_h200", *BASE),
    "spot training": ("pool.slots=[{type: H100-spot, count: 16}]", "pool.train_on_spot=true", *BASE),
    "volume": ("pool=h100_h200", BASE[0], "launch.skypilot.volume=runs"),
}
CHECK = """
import sys, jsonschema, yaml
import sky
from sky.utils import dag_utils, schemas
documents = list(yaml.safe_load_all(open(sys.argv[1])))
if len(documents) > 1:
    documents = documents[1:]
    dag = dag_utils.load_job_group_from_yaml(sys.argv[1])
    assert dag.is_job_group() and len(dag.tasks) == len(documents), dag
for document in documents:
    jsonschema.validate(document, schemas.get_task_schema())
    if not sys.argv[2:]:
        sky.Task.from_yaml_config(document)
"""


def documents_of(files: Any) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(files["job.yaml"]))


@pytest.mark.parametrize("name", ["job.yaml", "node.sh"])
def test_what_is_rendered_has_been_read(name: str) -> None:
    check_golden(f"skypilot_{name}", SkyPilotScheduler().render(plan_of(*FULL))[name])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_skypilot_itself_takes_the_tasks(settings: tuple[str, ...], tmp_path: Path) -> None:
    python = os.environ.get("RLSERVE_TEST_SKYPILOT")
    if python is None:
        pytest.skip("RLSERVE_TEST_SKYPILOT is not set")
    files = SkyPilotScheduler().render(plan_of(*settings))
    for name, text in {**files, "ray_token": "x"}.items():  # it looks whether they are there
        (tmp_path / name).write_text(text.replace("/data/runs/hello/job", str(tmp_path)))
    # A volume is looked up at SkyPilot's server.
    command = [python, "-c", CHECK, str(tmp_path / "job.yaml"), *(["schema only"] if "volume" in str(settings) else [])]
    environment = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_tasks_hang_together(settings: tuple[str, ...]) -> None:
    plan = plan_of(*settings)
    documents = documents_of(SkyPilotScheduler().render(plan))
    tasks = documents[1:] if len(documents) > 1 else documents
    assert len(tasks) == len(plan.groups)
    assert sum(task["num_nodes"] for task in tasks) == sum(group.num_nodes for group in plan.groups)
    assert "node.sh head " in tasks[0]["run"]
    if len(documents) > 1:
        assert documents[0]["primary_tasks"] == [tasks[0]["name"]]
        assert all(f"{tasks[0]['name']}-0.{documents[0]['name']}" in task["run"] for task in tasks[1:])


@given(
    prefers=st.lists(st.sampled_from(["train", "rollout", None]), min_size=1, max_size=4),
    types=st.lists(st.sampled_from(["H100", "H100-spot"]), min_size=4, max_size=4),
)
def test_machines_are_on_spot_where_their_slots_are_and_the_controller_is_not_if_it_can_be(
    prefers: list[Any], types: list[str]
) -> None:
    groups = [
        NodeGroup(
            name=f"g-{i}", type=types[i], is_gpu=True, num_nodes=1, slots_per_node=8, cpus_per_node=8, prefer=prefer
        )
        for i, prefer in enumerate(prefers)
    ]
    tasks = tasks_of(groups, SkyPilotConfig(rollout_types=("L40S",)))
    assert sorted(task.group.name for task in tasks) == [group.name for group in groups]
    assert not tasks[0].group.is_spot or all(group.is_spot for group in groups)
    for task in tasks:
        assert {choice["use_spot"] for choice in task.choices} == {task.group.is_spot}
        assert all("-spot" not in choice["accelerators"] for choice in task.choices)
        assert ('"spot": 1' in task.amount) == task.group.is_spot
        assert all(name.endswith("-spot") == task.group.is_spot for name in task.types)


def test_a_pool_of_any_of_several_types_takes_what_comes(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(SkyPilotScheduler().render(plan_of(*FULL))["run.yaml"])
    loaded = load(str(tmp_path / "run.yaml")).config
    assert (loaded.output_dir, loaded.name, loaded.pool.slots) == ("/runs", "hello", "auto")
    assert loaded.pool.auto_prefer == {"H100": "train"}


def test_a_type_that_may_be_for_either_role_prefers_none() -> None:
    groups = plan_of("pool=h100_h200", *BASE).groups
    config = SkyPilotConfig(rollout_types=("H100", "L4"))
    assert preferences(groups, config) == {"H200": "rollout", "L4": "rollout"}


def test_prices_travel_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = tmp_path / "mine.yaml"
    prices.write_text(PRICES)
    files = SkyPilotScheduler().render(plan_of(*FULL, f"cost.prices={prices}"))
    machine = tmp_path / "rlserve"  # as node.sh has it
    machine.mkdir()
    for task in documents_of(files)[1:]:
        for there, here in task["file_mounts"].items():
            if (name := Path(here if isinstance(here, str) else "").name) in files:
                assert there == f"~/rlserve/{name}"
                (machine / name).write_text(files[name])
    prices.unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    found = check_prices(load(str(machine / "run.yaml")).config)
    assert found is not None
    assert found.of("H100") == 2.5


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_script_is_one_that_bash_can_read_and_no_secret_is_in_a_file(settings: tuple[str, ...]) -> None:
    files = SkyPilotScheduler().render(plan_of("launch.env_file=/home/me/.rlserve.env", *settings))
    checked = subprocess.run(["bash", "-n"], input=files["node.sh"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert not re.search(r"(KEY|TOKEN)=", "".join(files.values()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (BASE[1:], "launch.image"),
        (BASE[:1], "launch.skypilot.volume"),
        ((*BASE, "launch.skypilot.volume=runs"), "name one of them"),
    ],
)
def test_what_is_missing_is_said(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        SkyPilotScheduler().render(plan_of(*settings))


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ([], None),
        ([{"job_id": 8, "status": "RUNNING"}], None),
        ([{"job_id": 7, "status": "PENDING"}], JobState(stage="waiting", detail="PENDING")),
        (
            [
                {"job_id": 7, "task_id": 1, "task_name": "l4-1", "status": "RECOVERING", "recovery_count": 2},
                {"job_id": 7, "task_id": 0, "task_name": "h100-0", "status": "RUNNING", "recovery_count": 0},
            ],
            JobState(stage="running", detail="h100-0 RUNNING, l4-1 RECOVERING, recovered 2×"),
        ),
        (
            [{"job_id": 7, "status": "FAILED", "failure_reason": "exit code 2"}],
            JobState(stage="ended", detail="FAILED (exit code 2)"),
        ),
    ],
)
def test_what_skypilot_says_of_a_job(found: list[dict[str, Any]], state: JobState | None) -> None:
    assert read_state("a line before it\n" + json.dumps(found), "7") == state
