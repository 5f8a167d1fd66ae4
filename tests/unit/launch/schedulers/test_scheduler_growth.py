"""A run that may grow, as a job: what Ray's own autoscaler reads out of it, and does with what the run asks for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_files import check_golden
from kubernetes_schemas import check_object
from plans import plan_of
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint

from rlserve.errors import UserError
from rlserve.launch.schedulers.factory import create_scheduler
from rlserve.launch.schedulers.growth import growth_in_words
from rlserve.launch.schedulers.kubernetes.scheduler import KubernetesScheduler
from rlserve.pool.autoscaler import NodeShape, bundle
from rlserve.tracking.cost.prices import Prices

SLOTS = "pool.slots=[{type: H100, count: 8, prefer: train}, {type: L40S, count: 4}]"
GROWS = (
    SLOTS,
    "scale_out.max_slots={L40S-spot: 12, H100: 16}",
    "scale_out.slots_per_node={L40S-spot: 4, H100: 8}",
    "launch.image=me/rlserve:1",
    "launch.kubernetes.claim=runs",
)
PRICES = Prices(currency="EUR", date="2026-11-01", per_hour={"H100": 2.5, "L40S": 1.0, "L40S-spot": 0.5})


def rendered(*settings: str) -> dict[str, Any]:
    """The files of the job, each as what it says."""
    files = KubernetesScheduler().render(plan_of(*GROWS, *settings))
    return {name: yaml.safe_load(text) for name, text in files.items()}


def autoscaling(rayjob: Mapping[str, Any]) -> AutoscalingConfig:
    """What Ray's autoscaler makes of the cluster of a job, as it does beside the head."""
    cluster = {"metadata": {"name": "hello", "namespace": "default"}, "spec": rayjob["spec"]["rayClusterSpec"]}
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)


def launched(config: AutoscalingConfig, *asked: NodeShape) -> Counter[str]:
    """Pods by group that it starts on an empty cluster, which has the least of each group at once."""
    bundles = [bundle(shape) for shape in asked for _ in range(shape.num_nodes)]
    constraint = ClusterResourceConstraint(
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(each) for each in bundles])
    )
    reply = ResourceDemandScheduler(logging.getLogger(__name__)).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            cluster_resource_constraints=[constraint] if bundles else [],
        )
    )
    assert not reply.infeasible_cluster_resource_constraints
    return Counter({each.instance_type: each.count for each in reply.to_launch if each.instance_type != "headgroup"})


@pytest.mark.parametrize("settings", [(), ("launch.kubernetes.queue=team",), ("scale_out.min_slots={L40S-spot: 4}",)])
def test_every_file_of_a_run_that_grows_is_valid(settings: tuple[str, ...]) -> None:
    files = rendered(*settings)
    assert {"autoscaler_policy.yaml", "rayjob.yaml"} <= set(files)
    for content in files.values():
        check_object(content)


def test_what_differs_from_a_run_that_does_not_grow_has_been_read() -> None:
    content = rendered("launch.kubernetes.queue=team")["rayjob.yaml"]
    cluster = content["spec"]["rayClusterSpec"]
    for group in cluster["workerGroupSpecs"]:
        pod = group.pop("template")
        group["part"] = pod["metadata"]["labels"]["rlserve/part"]
        group["tolerations"] = [each["key"] for each in pod["spec"]["tolerations"]]
    del cluster["headGroupSpec"]
    text = yaml.safe_dump({"metadata": content["metadata"], "cluster": cluster}, sort_keys=False)
    check_golden("kubernetes_growing.yaml", text)


def test_what_the_run_asks_for_is_what_the_autoscaler_starts() -> None:
    config = autoscaling(rendered()["rayjob.yaml"])
    assert launched(config) == {"h100-0": 1, "l40s-1": 1}  # what the run begins with, whatever it asks for
    asked = (
        NodeShape(type="H100", num_slots=8, num_nodes=2),
        NodeShape(type="L40S-spot", num_slots=4, num_nodes=3),
    )
    assert launched(config, *asked) == {"h100-0": 2, "l40s-1": 1, "l40s-spot-2": 3}


def test_the_ceiling_is_the_clusters_too() -> None:
    groups = autoscaling(rendered()["rayjob.yaml"]).get_node_type_configs()
    limits = {name: (each.min_worker_nodes, each.max_worker_nodes) for name, each in groups.items()}
    assert limits == {"headgroup": (0, 1), "h100-0": (1, 2), "l40s-1": (1, 1), "l40s-spot-2": (0, 3)}


def test_spot_machines_are_started_for_no_slots_on_demand() -> None:
    settings = ("scale_out.max_slots={L40S-spot: 12, L40S: 8}", "scale_out.slots_per_node={L40S-spot: 4, L40S: 4}")
    config = autoscaling(rendered(*settings)["rayjob.yaml"])
    assert launched(config, NodeShape(type="L40S", num_slots=4, num_nodes=2)) == {"h100-0": 1, "l40s-1": 2}
    spot = launched(config, NodeShape(type="L40S-spot", num_slots=4, num_nodes=2))
    assert spot == {"h100-0": 1, "l40s-1": 1, "l40s-spot-2": 2}


def test_slots_without_gpus_grow_too() -> None:
    settings = ("pool.slots=[{type: cpu-a, count: 2}]", "scale_out.max_slots={cpu-a: 6}")
    nodes = "scale_out.slots_per_node={cpu-a: 2}"
    files = KubernetesScheduler().render(plan_of(*GROWS[3:], *settings, nodes))
    config = autoscaling(yaml.safe_load(files["rayjob.yaml"]))
    assert launched(config, NodeShape(type="cpu-a", num_slots=2, num_nodes=3)) == {"cpu-a-0": 3}


def test_a_run_that_does_not_grow_has_no_autoscaler() -> None:
    files = KubernetesScheduler().render(plan_of(SLOTS, *GROWS[3:]))
    assert "autoscaler_policy.yaml" not in files
    assert "utoscal" not in files["rayjob.yaml"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("launch.gpus_per_node=4", "pool.slots=[{type: L40S, count: 4}]"), "must be at most launch.gpus_per_node"),
        (("pool.slots=[{type: H100, count: 12}]", "launch.gpus_per_node=12"), "must divide the 12 slots"),
    ],
)
def test_pods_that_would_not_be_whole_are_refused(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        KubernetesScheduler().render(plan_of(*GROWS, *settings))


@pytest.mark.parametrize("name", ["slurm", "skypilot"])
def test_a_scheduler_without_an_autoscaler_refuses(name: str) -> None:
    with pytest.raises(UserError, match="--to kubernetes"):
        create_scheduler(name).render(plan_of(*GROWS))


@pytest.mark.parametrize(
    ("settings", "prices", "said"),
    [
        ((), None, "not known without cost.prices"),
        ((), PRICES, "they cost 24.00 to 50.00 EUR an hour"),
        (("scale_out.money_per_hour=30", "cost.prices=/x"), PRICES, "of which at most 30.00 are spent"),
        (("scale_out.money_per_hour=60", "cost.prices=/x"), PRICES, "within scale_out.money_per_hour=60"),
        (("pool.slots=[{type: A100, count: 8}]",), PRICES, "without a price for A100"),
        (("pool.slots=auto",), PRICES, "; they cost 46.00 EUR an hour"),
    ],
)
def test_what_it_may_grow_to_is_said_with_its_price(
    settings: tuple[str, ...], prices: Prices | None, said: str
) -> None:
    assert said in (growth_in_words(plan_of(*GROWS, *settings).config, prices) or "")


def test_what_it_may_grow_to_is_said_by_type(tmp_path: Path) -> None:
    said = growth_in_words(plan_of(*GROWS).config, PRICES)
    assert said is not None
    assert said.startswith(
        "begins with 8 × H100, 4 × L40S and may grow to 16 × H100, 4 × L40S, 12 × L40S-spot; they cost 24.00 to 50.00"
    )
    assert growth_in_words(plan_of(SLOTS).config, PRICES) is None
