"""A Ray cluster on this machine whose nodes its own autoscaler starts and ends.

Ray's ``AutoscalingCluster`` does the same, but ends all of Ray on the machine first, and needs a file that Ray's wheel
does not have.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_clusters import ENVIRONMENT

from rlserve.distributed.addresses import free_port
from rlserve.processes import end_all, processes_naming

_HEAD_ID = "f" * 51 + "00000"
"""That Ray's provider of fake nodes gives the head."""
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_SYSTEM_CONFIG = {
    "worker_niceness": 0,
    "prestart_worker_first_driver": False,
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
}
_NO_COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "initialization_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)
_LOOK = """
import json, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("NODES", json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]), flush=True)
"""
_START_S = 60.0


class AutoscalingCluster:
    """A head with slots, and types of nodes that are started when they are asked for."""

    def __init__(
        self, folder: Path, head: Mapping[str, int], node_types: Mapping[str, Mapping[str, Any]], *, idle_s: float
    ) -> None:
        """``node_types`` are resources by name, with ``max_workers``; nodes end when they were idle for ``idle_s``."""
        self.address = f"127.0.0.1:{free_port()}"
        self._ray_folder = tempfile.mkdtemp(prefix="rlserve-test-ray-", dir="/tmp")  # sockets need a short path
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(_config(self.address, head, node_types, idle_s)))
        self._output = (folder / "ray.txt").open("w")
        self._process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")),
                *("start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false"),
                f"--temp-dir={self._ray_folder}",
                *("--node-ip-address=127.0.0.1", f"--port={self.address.rpartition(':')[2]}"),
                f"--autoscaling-config={config}",
                f"--resources={json.dumps(head)}",
                f"--system-config={json.dumps(_SYSTEM_CONFIG)}",
            ],
            env={
                **os.environ,
                **ENVIRONMENT,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
            },
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self._await_head()

    def nodes(self) -> list[dict[str, float]]:
        """Resources of the nodes that live."""
        command = [sys.executable, "-c", _LOOK, self.address]
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("NODES "))  # Ray prints there too
        return list(json.loads(line.removeprefix("NODES ")))

    def close(self) -> None:
        """End all of it."""
        end_all(processes_naming(self._ray_folder), grace_s=5.0)  # nodes outlive the autoscaler that started them
        self._process.wait(_START_S)
        self._output.close()
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def _await_head(self) -> None:
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
            except OSError:
                assert self._process.poll() is None, Path(self._output.name).read_text()
                assert time.monotonic() < deadline, f"no head at {self.address} within {_START_S} s"
                time.sleep(0.1)
            else:
                return


def _config(
    address: str, head: Mapping[str, int], node_types: Mapping[str, Mapping[str, Any]], idle_s: float
) -> dict[str, Any]:
    provider = {
        "type": "external",
        "module": _PROVIDER,
        "launch_multiple": True,
        "head_node_id": _HEAD_ID,
        "gcs_address": address,
    }
    return {
        "cluster_name": "test",
        "max_workers": 8,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": provider,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in _NO_COMMANDS},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1, **head}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in node_types.items()},
        },
    }
