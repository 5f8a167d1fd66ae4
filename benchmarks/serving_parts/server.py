"""A server of a model with random weights, as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from models import ModelShape, model_folder

from rlserve.tasks.character_tokenizer import SPECIAL_TOKENS, character_tokenizer

_FIRST_CHARACTER = 0x3400
"""Ideographs follow, more than any vocabulary has here."""
_ADDRESS = re.compile(r"serving \S+ on http://(\S+):(\d+)/v1")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where it listens, and its processes."""

    host: str
    port: int
    front: psutil.Process

    @property
    def replicas(self) -> list[psutil.Process]:
        """The processes with engines."""
        found: list[psutil.Process] = self.front.children()
        return found

    @property
    def cpu_s(self) -> float:
        """Of all its processes so far."""
        times = [process.cpu_times() for process in (self.front, *self.replicas)]
        return sum(time.user + time.system for time in times)

    @property
    def front_cpu_s(self) -> float:
        """Of the front alone."""
        times = self.front.cpu_times()
        return float(times.user + times.system)


@contextmanager
def running_server(shape: ModelShape, cache: Path, *overrides: str) -> Iterator[Server]:
    """One replica, until the context ends."""
    folder = served_folder(shape, cache)
    command = [sys.executable, "-m", "rlserve", "serve", str(folder), "port=0", "engine.device=cpu", *overrides]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(filter(None, map(_ADDRESS.search, process.stderr)))
            # Its log is read on, or it would wait to write it.
            threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
            yield Server(host=address[1], port=int(address[2]), front=psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def served_folder(shape: ModelShape, cache: Path) -> Path:
    """The folder of the model, with a tokenizer of one character a token."""
    folder = model_folder(shape, cache)
    if not (folder / "tokenizer.json").is_file():
        letters = range(_FIRST_CHARACTER, _FIRST_CHARACTER + shape.vocab_size - len(SPECIAL_TOKENS))
        character_tokenizer("".join(map(chr, letters))).save_pretrained(folder)
    return folder
