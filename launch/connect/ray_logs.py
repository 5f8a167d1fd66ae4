"""Ray's own log records: into the log file with ours, and not onto the console."""

from __future__ import annotations

import logging
from typing import Any

from ray._private import worker as ray_worker


def route_ray_logs() -> None:
    """Take Ray's handler away, which prints to the console whatever we say, and hand its records on to ours; with them
    what its other processes report, such as the death of a worker, which it prints to the console in colour."""
    logger = logging.getLogger("ray")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    ray_worker.print_to_stdstream = _record_lines  # there is no setting for it


def _record_lines(report: dict[str, Any], ignore_prefix: bool) -> None:
    """In the place of the function that prints what ``report`` has to say."""
    for line in report["lines"]:
        logging.getLogger(f"ray.{report['pid']}").warning("%s", line)
