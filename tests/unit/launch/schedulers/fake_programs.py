"""Stand-ins for a scheduler's programs: they write down how they are called, and answer what they are told to."""

from __future__ import annotations

from pathlib import Path

SCRIPT = """#!/bin/sh
echo "$(basename "$0") $*" >> "{folder}/calls"
cat "{folder}/answer-$(basename "$0")" 2>/dev/null
[ ! -e "{folder}/error-$(basename "$0")" ] || {{ cat "{folder}/error-$(basename "$0")" >&2; exit 1; }}
"""


class FakePrograms:
    """Programs in a folder, which must be the first of the PATH."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        for name in names:
            (folder / name).write_text(SCRIPT.format(folder=folder))
            (folder / name).chmod(0o755)

    def answer(self, name: str, text: str) -> None:
        """What ``name`` prints from now on."""
        (self.folder / f"answer-{name}").write_text(text)

    def fail(self, name: str, text: str) -> None:
        """What ``name`` fails with from now on."""
        (self.folder / f"error-{name}").write_text(text)

    def take_calls(self) -> list[str]:
        """The command lines since the last time."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines
