"""Nodes that are asked of Ray's autoscaler."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rlserve.errors import PoolError
from rlserve.pool.discovery import SPOT_RESOURCE, accelerator_marker
from rlserve.roofline.accelerators import is_cpu, is_spot

_MARK = 0.001
"""Of a resource that only says what a node is."""


@dataclass(frozen=True, kw_only=True)
class NodeShape:
    """A number of like nodes."""

    type: str
    """Of their slots."""
    num_slots: int
    """Of each."""
    num_nodes: int


def bundle(shape: NodeShape) -> dict[str, float]:
    """The resources that slots of one such node are pinned by: what a type of nodes must offer in the autoscaler's
    configuration, in whole or more."""
    if is_cpu(shape.type):
        return {shape.type: float(shape.num_slots)}
    spot = {SPOT_RESOURCE: _MARK} if is_spot(shape.type) else {}
    return {"GPU": float(shape.num_slots), accelerator_marker(shape.type): _MARK, **spot}


async def request_nodes(shapes: Sequence[NodeShape]) -> None:
    """Ask that the joined cluster has nodes of these shapes, whoever uses them; what was asked before holds no more.
    The autoscaler starts what is missing, and ends nodes beyond that once they have been idle for its time.

    Raises:
        PoolError: the head of the cluster does not answer.
    """
    from ray.autoscaler.sdk import request_resources  # only here: not every user of this room starts Ray

    bundles = [bundle(shape) for shape in shapes for _ in range(shape.num_nodes)]
    try:
        await asyncio.to_thread(request_resources, bundles=bundles)
    except Exception as error:  # Ray raises errors of many kinds, and bare ones
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PoolError(f"Ray's autoscaler could not be asked for nodes: {reason}") from error
