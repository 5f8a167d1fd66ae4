"""The process of one peer: ``python -m trainer_parts.worker``. Speaks as ``base`` says; everything that libraries print
goes to stderr. Runs on any Python that has the peer's own packages."""

from __future__ import annotations

import json
import os
import sys

from trainer_parts.base import Turns, assignment_from
from trainer_parts.factory import create_peer


def main() -> None:
    """Make the peer of the first line, and let it take the turns of the others."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    turns = Turns(sys.stdin, answers)
    message = json.loads(sys.stdin.readline())
    assignment = assignment_from(message["assignment"])
    import torch

    torch.set_num_threads(assignment.num_threads)
    peer = create_peer(message["peer"], assignment)
    turns.say({"versions": peer.versions(), "settings": peer.settings()})
    peer.serve(turns)


if __name__ == "__main__":
    main()
