"""``rlserve doctor``: what this machine has, and what is missing for what."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlserve.cli.doctor.base import Finding, Level
from rlserve.cli.doctor.computing import examine_computing
from rlserve.cli.doctor.folders import examine_folders
from rlserve.cli.doctor.machine import examine_machine
from rlserve.cli.doctor.packages import examine_packages

EXIT_BAD = 1
_EXAMPLES = """\
examples:
  rlserve doctor
  rlserve doctor --json | jq '.[] | select(.level != "green")'
"""


def run(arguments: Sequence[str]) -> int:
    """Examine the machine; 1 if a run would not work."""
    parsed = _parser().parse_args(arguments)
    findings = list(examine())
    if parsed.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False) + "\n")
    else:
        _print(findings)
    return EXIT_BAD if any(finding.level is Level.BAD for finding in findings) else 0


def examine() -> Iterator[Finding]:
    """All findings."""
    yield from examine_machine()
    yield from examine_packages()
    yield from examine_computing()
    yield from examine_folders()


def _print(findings: Sequence[Finding]) -> None:
    """Lines in the order of examination, then how many are not green."""
    console = Console()
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.level, str(finding.level)), finding.what, Text(finding.text))
    console.print(table)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    if counts[Level.BAD]:
        console.print(f"{counts[Level.BAD]} red: runs will not work until that is mended")
    elif counts[Level.WARNING]:
        console.print(f"{counts[Level.WARNING]} yellow: runs work, with less")
    else:
        console.print("all is well")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve doctor",
        description="Examine this machine: system, memory, packages, GPUs as the driver, Ray and torch see them, "
        "compiled kernels, folders. Green is well, yellow works with less, red does not work; exit code 1 if "
        "anything is red.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    return parser
