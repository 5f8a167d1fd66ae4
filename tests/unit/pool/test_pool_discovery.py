from __future__ import annotations

import pytest

from rlserve.pool.discovery import discover_cluster

CPU_A = {"Alive": True, "Resources": {"CPU": 2.0, "cpu-a": 2.0}}
CPU_B = {"Alive": True, "Resources": {"CPU": 2.0, "cpu-b": 1.0}}
H200 = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H200": 1.0}}
H100 = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0}}
GONE = {"Alive": False, "Resources": {"cpu-a": 5.0}}


@pytest.mark.parametrize("nodes", [[CPU_A, GONE, CPU_B, H200, H100], [H100, CPU_B, H200, CPU_A]])
def test_slots_of_a_cluster_have_an_order_whatever_the_order_of_its_nodes(
    nodes: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert list(discover_cluster().items()) == [("H100", 4), ("H200", 8), ("cpu-a", 2), ("cpu-b", 1)]
