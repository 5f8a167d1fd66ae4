"""The Kustomize files for servers and for watching runs: what kubectl makes of them is valid, and fits together."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_schemas import check_object

from rlserve.config.serving import load_serving
from rlserve.serving.front.gate import OPEN_PATHS

ROOT = Path(__file__).parents[3]
SERVING = ROOT / "launch" / "kubernetes" / "serving"
MONITORING = ROOT / "launch" / "monitoring"
OVERLAYS = ("cpu", "gpu")
NEEDS_KUBECTL = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, and this machine has none")
BASE = tuple(sorted(SERVING.glob("base/*.yaml")))


@cache
def kustomized(folder: Path) -> list[dict[str, Any]]:
    """Everything that kubectl makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def rendered(overlay: str) -> dict[str, dict[str, Any]]:
    """By kind; of config maps, the one that holds the server's configuration."""
    contents = kustomized(SERVING / "overlays" / overlay)
    return {content["kind"]: content for content in contents if "grafana_serving.json" not in content.get("data", {})}


def of_base(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SERVING / "base" / f"{name}.yaml").read_text())
    return content


def container() -> dict[str, Any]:
    (found,) = of_base("deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@NEEDS_KUBECTL
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str) -> None:
    kinds = rendered(overlay)
    for content in kinds.values():
        check_object(content)
    own = {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PriorityClass",
    }
    assert set(kinds) == own | {"Service"} | ({"PrometheusRule", "ServiceMonitor"} if overlay == "gpu" else set())


@NEEDS_KUBECTL
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_and_nothing_else(overlay: str) -> None:
    kinds = rendered(overlay)
    pods = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert pods == {"app.kubernetes.io/name": "rlserve", "app.kubernetes.io/component": "server"}
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == pods
    assert kinds["Service"]["spec"]["selector"] == pods
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == pods
    assert kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == pods
    if "ServiceMonitor" in kinds:
        assert (
            kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
            <= kinds["Service"]["metadata"]["labels"].items()
        )


@NEEDS_KUBECTL
def test_a_misspelt_key_would_be_found() -> None:
    monitor = json.loads(json.dumps(rendered("gpu")["ServiceMonitor"]))
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    with pytest.raises(jsonschema.ValidationError, match="intervall"):
        check_object(monitor)


def test_the_server_listens_where_the_pod_is_asked_and_ends_within_its_grace() -> None:
    config = load_serving(str(SERVING / "base" / "serve.yaml"))
    pod = of_base("deployment")["spec"]["template"]["spec"]
    (port,) = container()["ports"]
    assert config.port == port["containerPort"]
    assert config.host == "0.0.0.0"
    assert pod["terminationGracePeriodSeconds"] >= config.drain.notice_s + config.drain.timeout_s
    probes = [container()[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert {probe["httpGet"]["path"] for probe in probes} == {"/health", "/ready"} <= OPEN_PATHS
    assert {probe["httpGet"]["port"] for probe in probes} == {port["name"]}
    readiness = container()["readinessProbe"]
    assert config.drain.notice_s >= readiness["periodSeconds"] * readiness["failureThreshold"]
    assert [variable["name"] for variable in container()["env"]] == [config.access.keys_variable]
    assert pod["volumes"][0]["configMap"]["name"] == "rlserve-serve"


def test_no_secret_and_no_number_of_replicas_is_in_a_file() -> None:
    for path in BASE:
        assert "kind: Secret" not in path.read_text()
    assert "replicas" not in of_base("deployment")["spec"]


def test_the_autoscaler_asks_for_what_the_adapter_offers_and_servers_export() -> None:
    (metric,) = of_base("autoscaler")["spec"]["metrics"]
    values = yaml.safe_load((SERVING / "components/monitoring/prometheus_adapter_values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    name = metric["pods"]["metric"]["name"]
    assert name == rule["name"]["as"] == "vllm:num_requests_waiting"
    assert f'__name__="{name}"' in rule["seriesQuery"]
    dashboard = (MONITORING / "serving" / "grafana_serving.json").read_text()
    assert name in dashboard, "tests hold the dashboard to what servers export"


@NEEDS_KUBECTL
def test_what_is_there_once_for_all_runs_is_valid() -> None:
    contents = kustomized(MONITORING / "training")
    for content in contents:
        check_object(content)
    kinds = {content["kind"]: content for content in contents}
    assert set(kinds) == {"ConfigMap", "PrometheusRule", "ServiceMonitor"}
    assert set(kinds["ConfigMap"]["data"]) == {"grafana_runs.json"}


@pytest.mark.parametrize("alerts", sorted(MONITORING.glob("*/*_alerts.yaml")), ids=lambda path: path.parent.name)
def test_the_operators_rule_has_the_alerts(alerts: Path) -> None:
    rule = alerts.with_name("prometheus_rule.yaml").read_text()
    assert yaml.safe_load(rule)["spec"] == yaml.safe_load(alerts.read_text())
    made = runpy.run_path(str(MONITORING / "prometheus_rule.py"))["prometheus_rule"](alerts)
    assert made == rule, "run python launch/monitoring/prometheus_rule.py"
