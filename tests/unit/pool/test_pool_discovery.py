"""What a cluster offers, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from rlserve.pool.discovery import accelerator_marker, count_slots, discover_cluster, node_labels
from rlserve.roofline.accelerators import slot_type


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": f"id of {name}", "NodeManagerHostname": name, "Alive": alive, "Resources": resources}


NODES = [
    node("cpu-1", CPU=2.0, **{"cpu-a": 2.0}),
    node("cpu-2", CPU=2.0, **{"cpu-b": 1.0}),
    node("gpu-1", CPU=8.0, GPU=8.0, **{"accelerator_type:H200": 1.0}),
    node("gpu-2", CPU=8.0, GPU=4.0, **{"accelerator_type:H100": 1.0}),
    node("gone", alive=False, **{"cpu-a": 5.0}),
    node("head", CPU=4.0),
]


@pytest.fixture
def draining(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found: dict[str, int] = {}
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", lambda: found)
    return found


@pytest.mark.parametrize("nodes", [NODES, NODES[::-1]])
def test_slots_of_a_cluster_have_an_order_whatever_the_order_of_its_nodes(
    nodes: list[Mapping[str, Any]], draining: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    found = discover_cluster()
    assert [(each.id, dict(each.counts)) for each in found] == [
        ("id of cpu-1", {"cpu-a": 2}),
        ("id of cpu-2", {"cpu-b": 1}),
        ("id of gpu-1", {"H200": 8}),
        ("id of gpu-2", {"H100": 4}),
    ]
    assert list(count_slots(found).items()) == [("H100", 4), ("H200", 8), ("cpu-a", 2), ("cpu-b", 1)]


def test_slots_of_a_node_that_leaves_do_not_count(draining: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: NODES)
    draining["id of gpu-2"] = 0
    assert [each.name for each in discover_cluster() if each.is_draining] == ["gpu-2"]
    assert "H100" not in count_slots(discover_cluster())


def test_gpus_of_a_spot_machine_are_of_a_type_of_their_own(
    draining: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = node("spot", CPU=8.0, GPU=8.0, spot=1.0, **{"accelerator_type:H100": 1.0})
    monkeypatch.setattr("ray.nodes", lambda: [*NODES, spot])
    assert count_slots(discover_cluster())["H100-spot"] == 8
    assert accelerator_marker("H100-spot") == accelerator_marker("H100") == "accelerator_type:H100"
    assert slot_type("H100-spot") == replace(slot_type("H100"), name="H100-spot")
    assert slot_type("paced-H100-spot").device == "cpu"


def test_labels_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": "a", "Labels": {"x": "1"}}, {"NodeID": "b", "Labels": {}}])
    assert [node_labels(node_id) for node_id in ("a", "b", "gone")] == [{"x": "1"}, {}, {}]
