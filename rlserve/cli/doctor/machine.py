"""Processor, memory, limits, network: what the operating system gives us."""

from __future__ import annotations

import os
import platform
import resource
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

from rlserve.cli.doctor.base import Finding, bad, good, warning

MIN_CORES = 2
LITTLE_MEMORY_BYTES = 4 << 30
TOO_LITTLE_MEMORY_BYTES = 1 << 30
LITTLE_SHARED_MEMORY_BYTES = 512 << 20
FEW_FILES = 4096
SHARED_MEMORY = "/dev/shm"
_CONNECT_TIMEOUT_S = 5.0
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The numbers that are judged."""

    system: str
    num_cores: int
    """That this process may use."""
    total_memory_bytes: int
    available_memory_bytes: int
    free_shared_memory_bytes: int | None
    """None where there is none."""
    max_open_files: int
    """That this process may ask for; -1 is without limit."""


def examine_machine() -> Iterator[Finding]:
    """This machine."""
    yield from judge_machine(_look())
    yield from judge_proxies(os.environ)
    yield _loopback()


def judge_machine(machine: Machine) -> Iterator[Finding]:
    """Whether it will do."""
    yield good("system", machine.system)
    cores = f"{machine.num_cores}"
    yield (
        good("cores", cores)
        if machine.num_cores >= MIN_CORES
        else warning("cores", f"{cores}: training and rollout share it, and take turns")
    )
    memory = f"{_gib(machine.available_memory_bytes)} of {_gib(machine.total_memory_bytes)} available"
    if machine.available_memory_bytes < TOO_LITTLE_MEMORY_BYTES:
        yield bad("memory", f"{memory}: Ray and two workers need about {_gib(LITTLE_MEMORY_BYTES)}; end something else")
    elif machine.available_memory_bytes < LITTLE_MEMORY_BYTES:
        yield warning("memory", f"{memory}: enough for the small models only")
    else:
        yield good("memory", memory)
    free = machine.free_shared_memory_bytes
    if free is not None and free < LITTLE_SHARED_MEMORY_BYTES:
        yield warning(
            "shared memory",
            f"{_gib(free)} free in {SHARED_MEMORY}: Ray hands weights around through it, and falls back to the disk; "
            "in Docker start with --shm-size=8g",
        )
    elif free is not None:
        yield good("shared memory", f"{_gib(free)} free in {SHARED_MEMORY}")
    files = machine.max_open_files
    if 0 <= files < FEW_FILES:
        yield warning("open files", f"at most {files}: Ray may run out of them; raise it with ulimit -n 65536")
    else:
        yield good("open files", "without limit" if files < 0 else f"at most {files:,}")


def judge_proxies(environment: Mapping[str, str]) -> Iterator[Finding]:
    """A proxy that is asked for the way to this machine itself breaks Ray."""
    lower = {name.lower(): value for name, value in environment.items()}
    proxies = [name for name in PROXIES if lower.get(name)]
    exempt = lower.get("no_proxy", "")
    if proxies and not any(host in exempt for host in ("localhost", "127.0.0.1", "*")):
        yield warning("proxy", f"{', '.join(proxies)} is set: let no_proxy name localhost,127.0.0.1")


def _look() -> Machine:
    memory = psutil.virtual_memory()
    shared = psutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else None
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        system=f"{platform.platform()}, Python {platform.python_version()}",
        num_cores=len(affinity(0)) if affinity is not None else os.cpu_count() or 1,
        total_memory_bytes=memory.total,
        available_memory_bytes=memory.available,
        free_shared_memory_bytes=shared,
        max_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )


def _loopback() -> Finding:
    """Ray and the trainers meet on ports of this machine that the system chooses."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()[:2], timeout=_CONNECT_TIMEOUT_S),
        ):
            return good("ports", "free ones can be had and reached on 127.0.0.1")
    except OSError as error:
        return bad("ports", f"no connection to 127.0.0.1 ({error}): a firewall or a sandbox forbids it; Ray needs it")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
