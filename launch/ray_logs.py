"""Ray's own log records: into the log file with ours, and not onto the console."""

from __future__ import annotations

import logging


def route_ray_logs() -> None:
    """Take Ray's handler away, which prints to the console whatever we say, and hand its records on to ours."""
    logger = logging.getLogger("ray")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
