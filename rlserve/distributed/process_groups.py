"""Process groups of torch.distributed: gloo between CPUs, NCCL between GPUs.

They are made directly, not through ``init_process_group``, so that a group belongs to its owner, several can follow
one another in a process, and nothing global is touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from textwrap import shorten
from typing import Any

from torch.distributed import PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

from rlserve.distributed.addresses import address_towards
from rlserve.distributed.rendezvous import Rendezvous
from rlserve.errors import WorkerFailedError

_POLL_S = 0.0005


def new_gloo_group(rendezvous: Rendezvous, timeout: timedelta, *, name: str = "gloo") -> Any:
    """A gloo group of all ranks of a rendezvous, on the address of this machine that faces rank 0. Each group of one
    rendezvous has a ``name`` of its own."""
    place = rendezvous.place
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=address_towards(place.host, place.port))]
    options._timeout = timeout
    return ProcessGroupGloo(PrefixStore(name, rendezvous.store), place.rank, place.num_ranks, options)


def new_nccl_group(rendezvous: Rendezvous, timeout: timedelta, *, name: str = "nccl") -> Any:
    """An NCCL group of all ranks of a rendezvous, on each one's current GPU; ``name`` as for ``new_gloo_group``."""
    from torch.distributed import ProcessGroupNCCL  # absent from CPU builds of torch

    # Break the group where a rank is lost, and do not end the processes that wait for it (the default).
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    place = rendezvous.place
    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroupNCCL(PrefixStore(name, rendezvous.store), place.rank, place.num_ranks, options)


def finish_on_host(work: Any, timeout: timedelta) -> None:
    """Wait for an operation on the host before the current stream does: a stream that waits for a rank that is lost
    goes on holding whoever waits for that stream, past every deadline.

    Raises:
        RuntimeError: the operation failed, or is not done in time.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while not work.is_completed():
        if time.monotonic() >= deadline:
            raise RuntimeError(f"not done within {timeout.total_seconds():g} s")
        time.sleep(_POLL_S)
    work.wait()


@contextmanager
def failures_named(
    rendezvous: Rendezvous, operation: str, *, close: Callable[[], None], culprits: Callable[[], str]
) -> Iterator[None]:
    """Turn a failure of a process group into an error, and close the group: its peers, which still wait for this
    rank, fail then and report at once.

    Args:
        rendezvous: names the group and this rank.
        operation: what is tried.
        close: closes the group.
        culprits: called once the group is closed; says who is to blame.

    Raises:
        WorkerFailedError: the operation failed.
    """
    try:
        yield
    except RuntimeError as error:
        close()
        place = rendezvous.place
        raise WorkerFailedError(
            f"{rendezvous.group}, rank {place.rank} of {place.num_ranks}: {operation} failed, {culprits()} "
            f"({shorten(str(error), 160)})"
        ) from error
    except BaseException:  # Ctrl-C: the ranks are not at the same place any more
        close()
        raise
