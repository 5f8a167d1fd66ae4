"""Which of Ray's processes are left out, and that this Ray still has them to be left out."""

from __future__ import annotations

from ray._private.node import Node

from rlserve.launch.connect.ray_helpers import HELPERS, helpers_left_out


def test_helpers_are_not_started_meanwhile_and_are_again_afterwards() -> None:
    before = {name: getattr(Node, name) for name in HELPERS}
    node = object.__new__(Node)
    with helpers_left_out():
        node.start_api_server(include_dashboard=False, raise_on_failure=False)
        node.start_log_monitor()
        node.start_monitor()
        assert not hasattr(node, "all_processes"), "nothing was touched"
    assert {name: getattr(Node, name) for name in HELPERS} == before
