"""The program ``vllm`` as far as vLLM's tests start it: ``vllm serve`` becomes ``rlserve serve``."""

from __future__ import annotations

import os
import sys

from options import translate


def main() -> None:
    """Become the server."""
    if sys.argv[1:2] != ["serve"]:
        raise SystemExit(f"only `vllm serve` is stood in for, not: {' '.join(sys.argv[1:])}")
    command = translate(sys.argv[2:], os.environ)
    sys.stderr.write(f"rlserve serve {command.model} {' '.join(command.overrides)}\n")
    if command.unknown:
        sys.stderr.write(f"nothing stands for {' '.join(command.unknown)}\n")
    arguments = ["-m", "rlserve", "serve", command.model, *command.overrides]
    os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, **command.environment})


if __name__ == "__main__":
    main()
