"""Importing DeepSpeed, which takes a second, chooses a device as it is imported, and is an extra."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from rlserve.errors import UserError


def import_deepspeed(device_type: str) -> Any:
    """The package, for devices of a type of torch's: ``cpu`` or ``cuda``. The first call decides for the process.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"trainer.backend=deepspeed needs the package deepspeed ({error}): "
            'pip install --no-build-isolation "rlserve[deepspeed]", or take trainer.backend=torch'
        ) from error
    deepspeed.utils.logger.setLevel(logging.WARNING)  # it reports all of its settings, to standard output
    # It would compile this for a minute at its first use on a CPU, for an operation that training has not.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # not ours to mend
    return deepspeed
