"""The command line. Reads arguments and prints; all work is done elsewhere, and imported when it is needed.

Exit codes: 0 done, 1 the run failed, 2 something that the user can mend (one clear message, no traceback),
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rlserve import __version__
from rlserve.cli.commands import COMMANDS, run_command
from rlserve.errors import RlserveError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        exit_code = run_command(parsed.command, parsed.arguments)
        sys.stdout.flush()
        return exit_code
    except RlserveError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="rlserve",
        description="Reinforcement learning of language models that shares one pool of GPUs between training and "
        "rollout.",
        epilog="commands:\n"
        + "".join(f"  {name:{width}}{what}\n" for name, what in COMMANDS.items())
        + "\nrlserve COMMAND --help says more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rlserve {__version__}")
    parser.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser
