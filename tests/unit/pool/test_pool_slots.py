"""Slots from the configuration and from what there is."""

from __future__ import annotations

from typing import Any

import pytest

from rlserve.errors import PoolError
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.slots import at_most, slot_groups
from rlserve.roofline.accelerators import slot_type


def test_more_than_there_is_names_what_there_is() -> None:
    config = PoolConfig(slots=(SlotGroupConfig(type="H100", count=8),))
    with pytest.raises(PoolError, match="asks for H100 × 8, but there is: H100 × 4"):
        slot_groups(config, {"H100": 4})
    with pytest.raises(PoolError, match="no accelerators"):
        slot_groups(config, {})


def test_counts_of_groups_of_one_type_add_up() -> None:
    group = SlotGroupConfig(type="H100", count=3)
    with pytest.raises(PoolError, match="H100 × 6"):
        slot_groups(PoolConfig(slots=(group, group)), {"H100": 4})


def test_cpu_slots_need_no_declaration_unless_somebody_declares_some() -> None:
    config = PoolConfig(slots=(SlotGroupConfig(type="cpu-a", count=2),))
    assert slot_groups(config, {}) == config.slots
    with pytest.raises(PoolError, match="cpu-a × 2"):
        slot_groups(config, {"cpu-b": 2})


def test_unknown_gpu_is_taken_for_a_modest_one() -> None:
    assert slot_type("XYZ-9000").device == "cuda"
    assert slot_type("XYZ-9000").flops_tflops < slot_type("H100").flops_tflops


def test_a_type_on_spot_machines_prefers_by_a_name_of_its_own() -> None:
    there = {"H100": 8, "H100-spot": 4, "L4-spot": 2}
    found = slot_groups(PoolConfig(auto_prefer={"H100": "train", "H100-spot": "rollout"}), there)
    assert {group.type: group.prefer for group in found} == {"H100": "train", "H100-spot": "rollout", "L4-spot": None}


@pytest.mark.parametrize(
    "wish",
    [
        {"auto_prefer": {"H100": "train", "H100-spot": "train"}},
        {"slots": (SlotGroupConfig(type="H100-spot", count=4, prefer="train"),)},
    ],
)
def test_spot_machines_prefer_to_train_only_where_they_may(wish: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pool\.train_on_spot=true"):
        PoolConfig(**wish)
    assert PoolConfig(**wish, train_on_spot=True).train_on_spot


def test_auto_prefers_what_it_is_told() -> None:
    found = slot_groups(PoolConfig(auto_prefer={"H100": "train"}), {"H100": 8, "L4": 4})
    assert [(group.type, group.prefer) for group in found] == [("H100", "train"), ("L4", None)]
    with pytest.raises(ValueError, match="auto_prefer"):
        PoolConfig(auto_prefer={"H100": "train"}, slots=found)


def test_a_ceiling_cuts_groups_of_its_type_from_the_end() -> None:
    groups = tuple(SlotGroupConfig(type=name, count=3) for name in ("H100", "L40S", "H100"))
    assert [(group.type, group.count) for group in at_most(groups, {"H100": 4})] == [
        ("H100", 3),
        ("L40S", 3),
        ("H100", 1),
    ]
    assert [group.type for group in at_most(groups, {"H100": 3})] == ["H100", "L40S"]
    assert at_most(groups, {}) == groups
