"""Ranks of a group as processes of this machine, each of which prints what it found. Standard library only."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from typing import Any


def run_ranks(command: Sequence[str], *, num_ranks: int, what: str) -> list[dict[str, Any]]:
    """Run the command as every rank, with ``--rank`` and the ``--port`` of rank 0, at which they meet; what each has
    printed on its last line, in JSON.

    Raises:
        RuntimeError: a rank failed; it has said why on standard error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen([*command, "--rank", str(rank), "--port", str(port)], stdout=subprocess.PIPE, text=True)
        for rank in range(num_ranks)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"{what}: a rank failed")
    return [json.loads(text.splitlines()[-1]) for text in said]
