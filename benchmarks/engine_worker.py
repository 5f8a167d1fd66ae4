"""The process of one peer: loads the model once, then obeys commands, one JSON object a line.

    stdin   {"command": "load", "peer": NAME, "options": {…}, "warm_up": [request, …]}
            {"command": "run", "requests": [request, …]}
    stdout  {"versions": {…}, "settings": {…}}          after load
            {"wall_s": …, "outcome": {…}}               after run

It ends when stdin does. Everything that libraries print goes to stderr. Runs on any Python that has the peer's own
packages.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any, TextIO

from peers.base import BenchmarkRequest, Peer, PeerOptions
from peers.factory import create_peer


def main() -> None:
    """Serve the commands of stdin."""
    answers = _take_stdout()
    peer: Peer | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if message["command"] == "load":
            peer = create_peer(message["peer"], PeerOptions(**message["options"]))
            peer.warm_up(_requests(message["warm_up"]))
            answer: dict[str, Any] = {"versions": peer.versions(), "settings": peer.settings()}
        else:
            assert peer is not None, "run before load"
            requests = _requests(message["requests"])
            start = time.perf_counter()
            outcome = peer.run(requests)
            answer = {"wall_s": time.perf_counter() - start, "outcome": asdict(outcome)}
        print(json.dumps(answer), file=answers, flush=True)


def _take_stdout() -> TextIO:
    """A private copy of stdout; descriptor 1 becomes stderr, for whatever libraries and their children print."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _requests(items: list[dict[str, Any]]) -> list[BenchmarkRequest]:
    return [BenchmarkRequest(**{**item, "prompt_token_ids": tuple(item["prompt_token_ids"])}) for item in items]


if __name__ == "__main__":
    main()
