"""Ray's own helpers, which a Ray that lives for one run does not need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.node import Node

HELPERS = (
    "start_api_server",  # the dashboard's, even without a dashboard; ``ray.init`` waits for it
    "start_log_monitor",  # hands on what workers print, which is in our own logs
    "start_monitor",  # the autoscaler's
)
"""Methods of a node that each start one. There is no setting for them; where a version of Ray has one no more, nothing
is left out."""


@contextmanager
def helpers_left_out() -> Iterator[None]:
    """Ray that is started meanwhile has none of them: a start takes half as long, for each imports much of Ray."""
    methods = {name: getattr(Node, name) for name in HELPERS if hasattr(Node, name)}
    for name in methods:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


def _start_nothing(_node: Node, **_options: Any) -> None:
    """In the place of a method that starts a helper."""
