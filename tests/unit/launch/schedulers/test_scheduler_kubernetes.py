"""What a run becomes for Kubernetes: valid by the cluster's own schemas, and read by a person."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from golden_files import check_golden
from kubernetes_schemas import check_object
from plans import PRICES, plan_of

from rlserve.config import load
from rlserve.errors import UserError
from rlserve.launch.schedulers.base import JobState
from rlserve.launch.schedulers.kubernetes.scheduler import KubernetesScheduler, read_state

BASE = ("launch.image=me/rlserve:1", "launch.kubernetes.claim=runs")
SPOT = "pool.slots=[{type: H100, count: 8, prefer: train}, {type: H200-spot, count: 4}]"
FULL = (SPOT, "launch.kubernetes.queue=team", "launch.kubernetes.secret=rlserve", *BASE)
MONITORED = ("tracking.prometheus_port=9400",)
TRAINING = Path(__file__).parents[4] / "launch" / "monitoring" / "training"


def validate(text: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(text)
    check_object(content)
    return content


@pytest.mark.parametrize(
    "settings",
    [
        FULL,
        BASE,
        ("pool=two", *BASE),
        ("pool.slots=[{type: L4, count: 16, prefer: rollout}, {type: H100, count: 8}]", *BASE),
        ("pool=h100_h200", *BASE),
    ],
    ids=["full", "four", "two", "many nodes", "no spot"],
)
def test_every_file_is_valid(settings: tuple[str, ...]) -> None:
    files = KubernetesScheduler().render(plan_of(*settings))
    kinds = {validate(text)["kind"] for text in files.values()}
    assert kinds == {"ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "RayJob"}


def test_the_jobs_of_a_sweep_have_a_label_in_common() -> None:
    for text in KubernetesScheduler().render(replace(plan_of(*FULL, *MONITORED), sweep="All of them")).values():
        content = validate(text)
        assert content["metadata"]["labels"]["rlserve/sweep"] == "all-of-them"
        if content["kind"] == "RayJob":
            cluster = content["spec"]["rayClusterSpec"]
            pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            assert {pod["template"]["metadata"]["labels"]["rlserve/sweep"] for pod in pods} == {"all-of-them"}


def test_a_misspelt_key_would_be_found() -> None:
    content = yaml.safe_load(KubernetesScheduler().render(plan_of(*FULL))["rayjob.yaml"])
    content["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        check_object(content)


@pytest.mark.parametrize("name", ["rayjob.yaml", "disruption_budget.yaml", "network_policy.yaml"])
def test_what_is_rendered_has_been_read(name: str) -> None:
    check_golden(f"kubernetes_{name}", KubernetesScheduler().render(plan_of(*FULL))[name])


def test_the_pods_read_the_run_as_it_was_checked_here(tmp_path: Path) -> None:
    plan = plan_of(*FULL)
    content = yaml.safe_load(KubernetesScheduler().render(plan)["configmap.yaml"])
    run_file = tmp_path / "run.yaml"
    run_file.write_text(content["data"]["run.yaml"])
    loaded = load(str(run_file)).config
    assert (loaded.output_dir, loaded.name) == ("/runs", "hello")
    assert (loaded.pool, loaded.trainer, loaded.launch) == (plan.config.pool, plan.config.trainer, plan.config.launch)
    assert "runs/hello --here" in content["data"]["stop.sh"]


def test_prices_travel_with_the_run(tmp_path: Path) -> None:
    prices = tmp_path / "mine.yaml"
    prices.write_text(PRICES)
    data = yaml.safe_load(KubernetesScheduler().render(plan_of(*FULL, f"cost.prices={prices}"))["configmap.yaml"])[
        "data"
    ]
    assert yaml.safe_load(data["run.yaml"])["cost"]["prices"] == "/etc/rlserve/prices.yaml"
    assert data["prices.yaml"] == PRICES


def test_prices_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    prices = tmp_path / "mine.yaml"
    prices.write_text(PRICES)
    plan = plan_of(*BASE, f"cost.prices={prices}")
    prices.unlink()
    with pytest.raises(UserError, match=r"cost\.prices=.*mine\.yaml"):
        KubernetesScheduler().render(plan)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ((), [{53}, {443}]),
        (("launch.kubernetes.egress_ports=[]",), [{53}]),
        (("launch.kubernetes.egress_ports=[443,8080]", "pool.notice_probe=google"), [{53}, {443, 8080}, {80}]),
    ],
)
def test_whom_pods_may_speak_to(settings: tuple[str, ...], allowed: list[set[int]]) -> None:
    text = KubernetesScheduler().render(plan_of(*FULL, *settings))["network_policy.yaml"]
    own, *others = validate(text)["spec"]["egress"]
    assert own == {"to": [{"podSelector": {"matchLabels": {"rlserve/run": "hello"}}}]}
    assert [{each["port"] for each in rule["ports"]} for rule in others] == allowed


@pytest.mark.parametrize("name", ["metrics_service.yaml", "network_policy.yaml"])
def test_what_is_rendered_for_prometheus_has_been_read(name: str) -> None:
    check_golden(f"kubernetes_monitored_{name}", KubernetesScheduler().render(plan_of(*FULL, *MONITORED))[name])


def test_prometheus_is_let_in_where_the_run_serves_its_metrics() -> None:
    files = {name: validate(text) for name, text in KubernetesScheduler().render(plan_of(*FULL, *MONITORED)).items()}
    tracking = yaml.safe_load(files["configmap.yaml"]["data"]["run.yaml"])["tracking"]
    service = files["metrics_service.yaml"]
    (port,) = service["spec"]["ports"]
    *_, let_in = files["network_policy.yaml"]["spec"]["ingress"]
    assert (tracking["prometheus_host"], tracking["prometheus_port"]) == ("0.0.0.0", 9400)
    assert {port["port"], *(each["port"] for each in let_in["ports"])} == {9400}
    cluster = files["rayjob.yaml"]["spec"]["rayClusterSpec"]
    head, *workers = [
        group["template"]["metadata"]["labels"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]
    assert service["spec"]["selector"].items() <= head.items()
    assert not any(service["spec"]["selector"].items() <= labels.items() for labels in workers)
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert "ports" not in container, "KubeRay would make a service of these alone, by which no worker finds the head"
    monitor = yaml.safe_load((TRAINING / "service_monitor.yaml").read_text())["spec"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] == port["name"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "rlserve-runs"
    (relabeling,) = endpoint["relabelings"]
    assert relabeling["sourceLabels"] == ["__meta_kubernetes_service_label_rlserve_run"]
    assert service["metadata"]["labels"]["rlserve/run"] == "hello"


def test_an_address_of_the_users_stays() -> None:
    files = KubernetesScheduler().render(plan_of(*FULL, *MONITORED, 'tracking.prometheus_host="::"'))
    assert yaml.safe_load(validate(files["configmap.yaml"])["data"]["run.yaml"])["tracking"]["prometheus_host"] == "::"


def test_trainers_stay_and_rollout_may_come_and_go() -> None:
    content = yaml.safe_load(KubernetesScheduler().render(plan_of(*FULL))["rayjob.yaml"])
    trainers, rollout = content["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (trainers["minReplicas"], trainers["maxReplicas"]) == (1, 1)
    assert "nodeSelector" not in trainers["template"]["spec"]
    assert "resources" not in trainers["rayStartParams"]
    assert rollout["minReplicas"] == 0
    assert rollout["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    assert rollout["rayStartParams"]["resources"] == """'{"spot": 1}'"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (BASE[:1], "launch.kubernetes.claim"),
        (BASE[1:], "launch.image"),
        ((*BASE, "launch.env_file=/me/.env"), "--from-env-file=/me/.env"),
        ((*BASE, "tracking.prometheus_port=0"), "tracking.prometheus_port .* 9400"),
    ],
)
def test_what_is_missing_is_said(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        KubernetesScheduler().render(plan_of(*settings))


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({}, JobState(stage="waiting", detail="not seen by KubeRay yet")),
        (
            {"spec": {"suspend": True}, "status": {"jobDeploymentStatus": "Suspended"}},
            JobState(stage="waiting", detail="Suspended"),
        ),
        (
            {"status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}},
            JobState(stage="running", detail="Running RUNNING"),
        ),
        (
            {"status": {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 2"}},
            JobState(stage="ended", detail="Failed FAILED exit code 2"),
        ),
    ],
)
def test_what_kuberay_says_of_a_job(found: dict[str, Any], state: JobState) -> None:
    assert read_state(json.dumps(found)) == state
