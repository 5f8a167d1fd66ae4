"""Checks of a run that shares its cluster."""

from __future__ import annotations

from typing import Any

import pytest
from config_builders import problems_of

from rlserve.errors import ConfigurationError
from rlserve.pool.sharing.config import ShareConfig


@pytest.mark.parametrize(
    ("share", "more", "problems"),
    [
        ({}, {}, []),
        ({"floor": 3, "most": 4}, {}, []),
        ({"floor": 1}, {}, ["pool.share.floor: must be at least 2, which the run needs to go on, got 1"]),
        ({"floor": 0, "floors": {"H100": 4}}, {}, []),
        ({"most": 1}, {}, ["pool.share.most: must be at least 2, which the run needs to go on, got 1"]),
        (
            {"floor": 2},
            {"rollout": {"engine": {"tensor_parallel_size": 2}}},
            ["pool.share.floor: must be at least 4, which the run needs to go on, got 2"],
        ),
        (
            {"enabled": False, "priority": 1},
            {},
            ["pool.share: has no effect without pool.share.enabled=true"],
        ),
        (
            {},
            {"launch": {"kind": "local"}},
            ["pool.share.enabled: has no effect with launch.kind=local: say launch=cluster"],
        ),
    ],
)
def test_what_goes_with_a_shared_cluster(share: dict[str, Any], more: dict[str, Any], problems: list[str]) -> None:
    pool = {"slots": "auto", "share": {"enabled": True, **share}}
    assert problems_of(**{"pool": pool, "launch": {"kind": "cluster"}, **more}) == problems


def test_floors_of_types_that_the_pool_has_not() -> None:
    share = {"enabled": True, "floors": {"cpu-b": 2, "H100": 2}}
    pool = {"slots": [{"type": "cpu-b", "count": 4}], "share": share}
    assert problems_of(pool=pool, launch={"kind": "cluster"}) == [
        "pool.share.floors: has H100, of which pool.slots has none"
    ]


@pytest.mark.parametrize("values", [{"floor": -1}, {"floors": {"H100": -1}}, {"floor": 3, "most": 2}, {"wait_s": -1.0}])
def test_values_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ShareConfig(**values)
