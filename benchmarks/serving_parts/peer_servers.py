"""Servers of one model for the same clients: ours and vLLM's, each with processes of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from rlserve.distributed.addresses import free_port

OURS, VLLM = "rlserve", "vllm"
MODEL_NAME = "model"
DTYPE = "bfloat16"
MAX_MODEL_LEN = 2048
MAX_NUM_SEQUENCES = 128
MAX_NUM_BATCHED_TOKENS = 2048
KV_CACHE_BYTES = 2**30
VLLM_BLOCK_SIZE = 128
"""Tokens of a KV block: the default of the CPU build."""
_START_DEADLINE_S = 900.0
_STOP_DEADLINE_S = 30.0
_SHOWN_CHARS = 3000
_VLLM_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are not pinned, as ours are not
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

WaitPolicy = Literal["own", "active", "passive"]
"""How the threads of a server wait between parallel regions: as it has them wait itself, or by ``OMP_WAIT_POLICY``."""
WAIT_POLICIES: dict[tuple[str, WaitPolicy], str] = {
    (OURS, "own"): "own: passive, set by rlserve serve",
    (VLLM, "own"): "own: OMP_WAIT_POLICY is not set",
    (VLLM, "active"): "OMP_WAIT_POLICY=active",
    (VLLM, "passive"): "OMP_WAIT_POLICY=passive",
}
"""For people."""


class ServerFailedError(RuntimeError):
    """A server ended before it served; the message has the end of its log."""


@dataclass(frozen=True, kw_only=True)
class PeerServer:
    """A server that serves."""

    name: str
    url: str
    process: psutil.Process
    """The first of its processes; engines are its children, or theirs."""

    @property
    def cpu_s(self) -> float:
        """Of its living processes so far."""
        times = [each.cpu_times() for each in (self.process, *self.process.children(recursive=True))]
        return sum(time.user + time.system for time in times)


def server_command(name: str, python: str, folder: Path, port: int) -> list[str]:
    """How the server of this name is started: the same sizes for each, all else as it does by itself."""
    if name == OURS:
        sizes = {
            "dtype": DTYPE,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_sequences": MAX_NUM_SEQUENCES,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
            "kv_cache_bytes": KV_CACHE_BYTES,
            "device": "cpu",
        }
        engine = [f"engine.{key}={value}" for key, value in sizes.items()]
        # It is loaded beyond what it would take by itself: both have to answer all.
        level = ["degradation.refuse_at=1000", "degradation.shorten_at=1000"]
        return [
            python,
            "-m",
            "rlserve",
            "serve",
            str(folder),
            f"port={port}",
            f"model.name={MODEL_NAME}",
            *engine,
            *level,
        ]
    options = {
        "model": folder,
        "served-model-name": MODEL_NAME,
        "host": "127.0.0.1",
        "port": port,
        "dtype": DTYPE,
        "max-model-len": MAX_MODEL_LEN,
        "max-num-seqs": MAX_NUM_SEQUENCES,
        "max-num-batched-tokens": MAX_NUM_BATCHED_TOKENS,
        "kv-cache-memory-bytes": KV_CACHE_BYTES,
        "block-size": VLLM_BLOCK_SIZE,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [python, "-m", "vllm.entrypoints.openai.api_server", *words]


@contextmanager
def running_peer(
    name: str, python: str, folder: Path, num_threads: int, policy: WaitPolicy = "own"
) -> Iterator[PeerServer]:
    """The server, until the context ends.

    Raises:
        ServerFailedError: it did not come to serve.
    """
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    environment.pop("OMP_WAIT_POLICY", None)
    if policy != "own":
        environment["OMP_WAIT_POLICY"] = policy
    if name == VLLM:
        environment |= _VLLM_ENVIRONMENT
        environment.pop("PYTHONPATH", None)  # its Python is another one
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            server_command(name, python, folder, port),
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _comes_to_serve(process, f"{url}/health"):
                log.seek(0)
                raise ServerFailedError(f"{name} did not serve: {log.read().decode(errors='replace')[-_SHOWN_CHARS:]}")
            yield PeerServer(name=name, url=url, process=psutil.Process(process.pid))
        finally:
            _stop(process)


def _comes_to_serve(process: subprocess.Popen[bytes], health: str) -> bool:
    deadline_s = time.monotonic() + _START_DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(health, timeout=5) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            pass  # not yet
        time.sleep(0.2)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        engines = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, left = psutil.wait_procs([psutil.Process(process.pid), *engines], _STOP_DEADLINE_S)
        for each in left:
            each.kill()
        process.wait()
