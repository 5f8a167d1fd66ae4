"""What makes a run grow, put together."""

from __future__ import annotations

from rlserve.config.growth import growth_terms
from rlserve.controller.context import RunContext
from rlserve.controller.departures import Departures
from rlserve.controller.gang_book import GangBook
from rlserve.controller.ports import Ports
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.scale_out import ScaleOut
from rlserve.controller.setup import RunSetup


def scale_out_side(
    run: RunContext, setup: RunSetup, ports: Ports, book: GangBook, departures: Departures, reallocation: Reallocation
) -> ScaleOut | None:
    """None where it stays as it is."""
    if ports.request_nodes is None:
        return None
    return ScaleOut(
        run,
        book,
        departures,
        growth_terms(setup.config, setup.prices),
        setup.prices,
        observe=reallocation.observe,
        request=ports.request_nodes,
        interval_s=setup.config.manager.interval_s,
    )
