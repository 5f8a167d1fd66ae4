"""What runs in a process that holds environments."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import threading
from typing import Any

from rlserve.errors import EnvironmentFailedError
from rlserve.processes import end_with_parent
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.host import EnvironmentHost
from rlserve.rollout.environments.makers import create_maker
from rlserve.rollout.environments.messages import packed, read_from
from rlserve.rollout.rewards.output import redirect_output

_STANDARD_ERROR = 2


def serve(file_descriptor: int, parent: int) -> None:
    """Find the class, then answer calls until there are no more. ``parent`` is the process that calls."""
    end_with_parent(parent)  # an environment that hangs must not outlive a run that is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the GPUs belong to the slots
    connection, sending = socket.socket(fileno=file_descriptor), threading.Lock()
    stream = connection.makefile("rb")
    config, log_path, name = read_from(stream)
    assert isinstance(config, EnvironmentConfig)
    if log_path is not None:
        redirect_output(log_path, name=name)
    faulthandler.enable(file=_STANDARD_ERROR)

    def send(message: Any) -> None:
        with sending:
            connection.sendall(packed(message))

    try:
        make = create_maker(config)
    except EnvironmentFailedError as error:
        send(error)
        return
    send(None)
    assert config.name is not None
    host = EnvironmentHost(make, name=config.name, timeout_s=config.timeout_s, send=send)
    asyncio.run(host.run(lambda: read_from(stream)))
